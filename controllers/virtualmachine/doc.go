// Package virtualmachine is the operator's half of a VirtualMachine: it makes
// and ends berths, releases finalizers on evidence, and reports what Kubernetes
// knows. Restarts in place are kubelet's, guests are the agent's.
package virtualmachine
