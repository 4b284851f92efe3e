// Package cluster puts a Kubernetes cluster onto machines: keys, configuration,
// the services of the control plane and of each node, and what every cluster
// has inside (DNS, and nothing more).
//
// It never touches the machine below but by package machine.
package cluster
