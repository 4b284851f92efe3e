// Package volume reads what kubelet mounted into a berth, and gives the volumes of claims to the guest's QEMU, from
// outside of the berth.
//
// A berth is hostile: no path of it is ever followed out of it, and nothing is opened twice by name. A volume's server
// may be its tenant's and never answer: what could wait for it says so, and holds a thread of its own and nothing else.
//
// It makes no file on a volume, reads none and owns none: whoever does that is a worker, with the user and in the
// cgroup of the guest.
package volume
