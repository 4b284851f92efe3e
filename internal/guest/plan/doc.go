// Package plan decides what happens to one guest on its node: from what the API
// wants and what the host has, to the next steps, the time to look again, and
// the report.
//
// It is pure: no clock, no host, no API server. Unknown is a value: no step that
// starts, stops or deletes follows from it, so one guest never becomes two. Each
// fact has its own: a step needs only those that it rests on. To end a guest these
// are its process and its container; to remove its disks, its domain too; to start
// it, all.
package plan
