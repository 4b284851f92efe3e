// Package host keeps this node's VirtualMachineHost: what the host is and has, whether guests can start on it, and what
// is misconfigured. It owns what libvirt tells of its host, which is asked in the background, and lets others read it.
//
// It never changes the host, and never touches a guest.
package host
