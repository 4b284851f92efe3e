// Package podnet connects a guest to its berth's network namespace: it moves the guest's taps there, addresses them,
// and translates between the guest's private addresses and the pod's, by nftables, in tables of its own that are always
// replaced whole. It opens the socket on which the shim serves DHCP.
//
// It writes no sysctl, since the agent's /proc/sys is read-only: what it needs of an interface's settings it sets by
// rtnetlink. It never touches an interface, address or rule that is not Berth's, nor the host's own namespace.
package podnet
