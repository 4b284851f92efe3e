package podnet

import (
	"context"
	"os"
)

// Pods are the pods' network namespaces. The functions of this package are its methods, for who takes them as an interface.
type Pods struct{}

// Connect is the function Connect.
func (Pods) Connect(ctx context.Context, ns *os.File, c Config) (PodInterface, error) {
	return Connect(ctx, ns, c)
}

// FindPodInterface is the function FindPodInterface.
func (Pods) FindPodInterface(ctx context.Context, ns *os.File) (PodInterface, error) {
	return FindPodInterface(ctx, ns)
}

// DHCPSocket is the function DHCPSocket.
func (Pods) DHCPSocket(ctx context.Context, ns *os.File, tap string) (*os.File, error) {
	return DHCPSocket(ctx, ns, tap)
}
