// Package console owns the sockets of a guest's QEMU that shims are given: of its serial console, and of its ports on
// virtio-serial, which libvirt makes in directories that only the agent may enter; and of its display, which QEMU
// makes itself, in a directory that only the agent and that QEMU may enter. It never reads or writes what goes through them.
package console
