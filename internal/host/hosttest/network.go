package hosttest

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/podnet"
)

// PodInterface is what every pod has.
var PodInterface = podnet.PodInterface{Name: "eth0", Address: netip.MustParsePrefix("10.244.0.2/24"), MTU: 1450}

// newFile opens /dev/null under another name.
func newFile(name string) (*os.File, error) {
	fd, err := unix.Open(os.DevNull, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Network is the host's network and those of its pods, as podnet makes them.
type Network struct{ h *Host }

// podOf returns the pod whose network namespace a file of Container.NetworkNamespace is.
func podOf(ctx context.Context, ns *os.File) (string, error) {
	uid, ok := strings.CutPrefix(ns.Name(), "/pods/")
	switch {
	case ctx.Err() != nil:
		return "", failed(ctx.Err())
	case !ok || ns.Fd() == ^uintptr(0):
		return "", failed(fmt.Errorf("%s is no network namespace that is open", ns.Name()))
	}
	return uid, nil
}

func failed(err error) error { return fault.NewTransient(v1alpha1.ReasonNetworkFailed, err) }

// Connect is as podnet.Connect.
func (n *Network) Connect(ctx context.Context, ns *os.File, c podnet.Config) (podnet.PodInterface, error) {
	uid, err := podOf(ctx, ns)
	if err != nil {
		return podnet.PodInterface{}, err
	}
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	for _, i := range c.Interfaces {
		if at, ok := n.h.taps[i.Tap]; !ok || at != "" && at != uid {
			return podnet.PodInterface{}, failed(fmt.Errorf("tap %s is neither on the host nor in the pod: its QEMU has ended", i.Tap))
		}
		n.h.taps[i.Tap] = uid
	}
	return PodInterface, nil
}

// FindPodInterface is as podnet.FindPodInterface.
func (n *Network) FindPodInterface(ctx context.Context, ns *os.File) (podnet.PodInterface, error) {
	if _, err := podOf(ctx, ns); err != nil {
		return podnet.PodInterface{}, err
	}
	return PodInterface, nil
}

// DHCPSocket is as podnet.DHCPSocket. Nothing comes from it.
func (n *Network) DHCPSocket(ctx context.Context, ns *os.File, tap string) (*os.File, error) {
	uid, err := podOf(ctx, ns)
	if err != nil {
		return nil, err
	}
	n.h.mu.Lock()
	defer n.h.mu.Unlock()
	if at, ok := n.h.taps[tap]; !ok || at != uid {
		return nil, failed(fmt.Errorf("tap %s is not in the pod: its QEMU has ended", tap))
	}
	return newFile("dhcp")
}

// Taps are the taps in a pod, sorted, or those on the host if there is no pod.
func (h *Host) Taps(podUID string) (names []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for name, at := range h.taps {
		if at == podUID {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}
