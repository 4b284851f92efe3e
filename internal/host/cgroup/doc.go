// Package cgroup tells in which cgroups a process is and whose they are, and moves QEMU into its berth's container. It
// knows v1 and v2, and kubelet's layouts under the cgroupfs and the systemd driver.
//
// Paths in /proc/PID/cgroup are relative to the reader's own cgroup namespace. On v2 a container has one of its own and
// would see "/../../…" of everybody else, so the agent calls EnterHostNamespace before anything else.
//
// It makes and removes no cgroup and sets no limit: those are kubelet's.
package cgroup
