// Package berth is the handshake between operator and agent: how a VirtualMachine becomes a pod, what the agent reads back
// from that pod, and the names (UUID, MAC, tap, finalizers) on which all processes agree.
//
// It is pure: it never talks to an API server or a host.
package berth
