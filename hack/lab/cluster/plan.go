package cluster

import "fmt"

// Addresses. Machines share a switch; each node routes a subnet of pods.
const (
	hostAddress    = "10.97.0.1"
	controlAddress = "10.97.0.2"
	prefixLength   = 24
	podSubnet      = "10.98.0.0/16"
	serviceSubnet  = "10.99.0.0/16"
	serviceAPI     = "10.99.0.1"
	serviceDNS     = "10.99.0.10"
	clusterDomain  = "cluster.local"

	// Registry is the lab's OCI registry, spoken to by plain HTTP from
	// everywhere: this host, nodes, pods.
	Registry = controlAddress + ":5000"
	// TestRegistry is where a test may serve a registry of its own, one that
	// misbehaves, by plain HTTP. Nobody listens there otherwise.
	TestRegistry = hostAddress + ":5001"
	// TestWeb is where it may serve files by HTTPS, with a certificate of the lab's authority, and be the mirror of
	// MirroredRegistry, which does not exist.
	TestWeb          = hostAddress + ":5002"
	MirroredRegistry = "mirrored.invalid"

	apiServer = "https://" + controlAddress + ":6443"
	// control is the machine of the control plane.
	control = "control"
	// MaxNodes fit into the addresses.
	MaxNodes = 15

	// SystemdHost is one node more, for which another kind of machine is made: a host with systemd and cgroup v2.
	SystemdHost = Node(MaxNodes + 1)
)

// Node is one of the cluster's nodes, counted from 1.
type Node int

// Name of the node's machine and of its Kubernetes object.
func (n Node) Name() string {
	if n == SystemdHost {
		return "systemd-host"
	}
	return fmt.Sprintf("node%d", n)
}

func (n Node) address() string { return fmt.Sprintf("10.97.0.%d", 10+n) }
func (n Node) pods() string    { return fmt.Sprintf("10.98.%d.0/24", n) }

// uuid that the node's libvirtd gives for its host: the same in every lab.
func (n Node) uuid() string { return fmt.Sprintf("be57be57-0000-4000-8000-%012d", n) }

func cidr(address string) string { return fmt.Sprintf("%s/%d", address, prefixLength) }

// routes from machine self to the pods of all nodes but itself. Nodes have no default route, and what a node itself
// sends to a Service needs one, though kube-proxy sends it elsewhere before it leaves.
func routes(self string) map[string]string {
	all := map[string]string{}
	if self != "" && self != control {
		all[serviceSubnet] = controlAddress
	}
	for n := Node(1); n <= SystemdHost; n++ {
		if n.Name() != self {
			all[n.pods()] = n.address()
		}
	}
	return all
}
