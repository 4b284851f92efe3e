// Package shim is PID 1 of a berth's only container: it stands for the guest. It joins the guest's console with the
// container's output and input, leases the guest its address, has commands run in it for the container's other processes,
// shows its screen to the pod's loopback, and ends when the agent says how the guest ended, with the guest's exit code.
//
// It holds only what the agent handed to it and what its clients pass, opens nothing by name but its termination log and its
// resolv.conf, decides nothing, and outlives agents. Were it to end by itself, the guest would end with it: so it does very
// little.
package shim
