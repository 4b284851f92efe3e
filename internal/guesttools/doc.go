// Package guesttools is the program in a guest that serves its berth's shim: it runs commands, each as a process of its own
// session, and brings hot-added processors and memory online. Its link is a virtio-serial port, whose other end only the
// host has.
//
// It needs nothing of the guest but a kernel with /proc, /sys and /dev: no library,
// no shell, no tar, no service manager. It listens to nobody else.
package guesttools
