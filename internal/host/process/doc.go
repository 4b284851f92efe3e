// Package process finds a guest's QEMU in /proc, whatever libvirt says of it,
// and holds processes by pidfd, so that no other is ever meant.
//
// It knows nothing of domains or berths, and starts nothing.
package process
