// Package console owns the sockets of guests' serial consoles: QEMU listens on one for each guest, in a directory that
// only the agent and that QEMU may enter. It never reads or writes what goes through them.
package console
