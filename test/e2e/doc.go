// Package e2e walks the journeys of users in the lab: apply, watch, use, delete,
// by kubectl, on real nodes with real guests. A test waits on conditions, never
// on time, and leaves nothing behind.
package e2e
