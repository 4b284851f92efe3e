// Package libvirtd talks to the host's libvirt daemon.
//
// It is the only owner of go-libvirt, and guards what that library does not: every call has a deadline after which its
// connection is closed, all lengths in a message are checked before memory is taken for them, events and calls never share a
// connection, and no more calls are in flight than libvirtd answers at once. Unknown and absent are never mixed up: an error
// always means unknown.
//
// Events are hints. They reach the caller as keys, all domains are listed after every connect and every half minute, and Run
// compares the two to find out when events have stopped flowing.
//
// It never decides what should be, never defines a domain (all are transient),
// and uses none of libvirt's streams or keepalives.
package libvirtd
