// Package machine makes machines out of Linux namespaces: each has its own
// processes, mounts, devices, network, host name and cgroups, and a PID 1 that
// starts its services. When PID 1 dies, everything in the machine dies with it,
// so that a machine can be switched off like a real one. What namespaces cannot
// give, a kernel and an init of its own, an emulated machine has.
//
// It knows nothing of Kubernetes, and it never touches what it did not make.
package machine
