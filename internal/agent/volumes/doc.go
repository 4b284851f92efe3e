// Package volumes is the agent's room for the claims' volumes of guests: what is attached for each, and the workers that make
// the disks on them. It decides nothing: internal/guest/plan does.
package volumes
