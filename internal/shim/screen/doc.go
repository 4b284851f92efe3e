// Package screen lets viewers see the guest's screen: it listens on the VNC port
// of the pod's loopback, to which kubectl port-forward leads, and joins each viewer
// with a connection of its own to QEMU. It reads nothing of what they say.
package screen
