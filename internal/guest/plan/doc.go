// Package plan decides what happens to one guest on its node: from what the API
// wants and what the host has, to the next steps, the time to look again, and
// the report.
//
// It is pure: no clock, no host, no API server. Unknown is a value: no step that
// starts, stops or deletes follows from it, so one guest never becomes two.
package plan
