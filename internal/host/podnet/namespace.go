package podnet

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/namespace"
)

// Pods are the pods' network namespaces. Each method takes one as an open /proc/PID/ns/net, and may be cut off by its
// context. Errors are of reason NetworkFailed.
type Pods struct{}

// inPod does work in a pod's namespace, with a handle of its links and routes.
func inPod[T any](ctx context.Context, ns *os.File, work func(*netlink.Handle) (T, error)) (value T, err error) {
	if err := refuseHostNamespace(ns); err != nil {
		return value, failed(err)
	}
	value, err = namespace.In(ctx, ns, unix.CLONE_NEWNET, func() (value T, err error) {
		h, err := newHandle()
		if err != nil {
			return value, err
		}
		defer h.Close()
		return work(h)
	})
	return value, failed(err)
}

// refuseHostNamespace refuses the namespace that we ourselves are in, the host's: a berth is never there.
func refuseHostNamespace(ns *os.File) error {
	own, ownErr := os.Stat("/proc/self/ns/net")
	other, err := ns.Stat()
	if err := errors.Join(ownErr, err); err != nil {
		return fmt.Errorf("reading network namespaces: %w", err)
	}
	if os.SameFile(own, other) {
		return errors.New("the berth is in the host's own network namespace")
	}
	return nil
}

func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	return h, fault.Doing(err, "opening netlink socket")
}

func userError(err error) error { return fault.NewUser(v1alpha1.ReasonNetworkFailed, err) }

// failed makes an error that has no class yet a transient one of the network.
func failed(err error) error {
	if _, ok := errors.AsType[*fault.Error](err); err == nil || ok {
		return err
	}
	return fault.NewTransient(v1alpha1.ReasonNetworkFailed, err)
}
