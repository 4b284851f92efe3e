// Package guest is the shim's part of commands in the guest: it takes clients of its own container, and joins their standard
// input, output and error with streams of the link to the guest program.
//
// Its clients' descriptors belong to others, who may never read or write: it waits
// for them in Go's poller, and holds no more of a stream than its window.
package guest
