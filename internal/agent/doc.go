// Package agent wires the parts of the agent of one node: the guests' loop (virtualmachine), its VirtualMachineHost (host),
// images on their way to it (pulls) and the sessions with the shims of its berths (shims). None of these knows another;
// they meet here, with each other, with the host's daemons (internal/host) and with the API server. It decides nothing.
package agent
