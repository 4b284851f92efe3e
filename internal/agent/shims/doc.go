// Package shims holds the sessions with the shims of this node's berths. It finds a berth's container by the runtime, proves
// by facts of the host whose process it is, takes the shim's socket, and exchanges messages with the shim until it ends.
//
// A session can be lost at any line: the next Connect takes the socket again. What
// a shim says is believed of its own guest alone.
//
// It decides nothing about a guest, starts and ends no process, and opens nothing that a shim names.
package shims
