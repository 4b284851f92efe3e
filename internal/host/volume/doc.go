// Package volume reads what kubelet mounted into a berth, from outside of it.
//
// A berth is hostile: no path of it is ever followed out of it, and nothing is
// opened twice by name.
package volume
