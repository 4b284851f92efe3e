package virtualmachine

import (
	"context"
	"fmt"
	"os"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/console"
	"github.com/berth-dev/berth/internal/host/podnet"
)

// moveToCgroup moves QEMU and what works for it into the container's cgroup, and gives it the score that kubelet gives the
// berth. Lowering that may be forbidden to us: then the kernel chooses by size alone, which is QEMU.
func (r *Reconciler) moveToCgroup(uid string, into Container) error {
	found, err := r.Host.Processes.Find(uid)
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	for _, q := range found {
		helpers, err := r.Host.Processes.VhostThreads(q.PID)
		if err != nil {
			return fmt.Errorf("looking for QEMU's helpers: %w", err)
		}
		if err := r.Host.Cgroups.Place(into.Cgroup(), append([]int{q.PID}, helpers...)...); err != nil {
			return fault.NewTransient(v1alpha1.ReasonPlacementFailed, fmt.Errorf("moving QEMU into the container's cgroup: %w", err))
		}
		if err := r.Host.Processes.CopyOOMScore(into.PID(), q.PID); err != nil {
			return fmt.Errorf("setting QEMU's oom_score_adj: %w", err)
		}
	}
	return nil
}

func (r *Reconciler) connectNICs(ctx context.Context, uid types.UID, to Container, s plan.ConnectNICs) error {
	ns, err := to.NetworkNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	config := podnet.Config{ReservedPorts: s.ReservedPorts}
	for i, n := range s.NICs {
		config.Interfaces = append(config.Interfaces, podnet.Interface{Tap: n.Tap, MAC: berth.MAC(uid, i), Address: n.Address, Gateway: n.Gateway})
	}
	_, err = r.Host.Network.Connect(ctx, ns, config)
	return err
}

// devicesOf are what the guest needs its shim to take, or it is not started: what it writes to a port that nobody reads
// would wait for ever. A guest without a VirtualMachine needs none.
func devicesOf(m *machine.Machine) []shimproto.Device {
	if m.UID == "" {
		return nil
	}
	list := []shimproto.Device{{Kind: shimproto.KindConsole, Name: "console"}}
	for _, n := range m.NICs {
		list = append(list, shimproto.Device{Kind: shimproto.KindDHCP, Name: n.Name})
	}
	list = append(list, shimproto.Device{Kind: shimproto.KindGuest, Name: "guest"}, shimproto.Device{Kind: shimproto.KindExit, Name: "exit"})
	if m.Display != "" {
		list = append(list, shimproto.Device{Kind: shimproto.KindDisplay, Name: "display"})
	}
	return list
}

// handOver hands the guest's devices to the shim, those that its domain has and the shim takes. Of the others the report tells.
func (r *Reconciler) handOver(ctx context.Context, m *machine.Machine, has *domain.Facts, to Session) error {
	isAbsent := func(d shimproto.Device) bool { return d.Kind == shimproto.KindDisplay && has.Display == "" } // its domain is of another spec
	what := shimproto.HandOver{Devices: slices.DeleteFunc(devicesOf(m), isAbsent), DirectKernel: m.Kernel != nil}
	return to.HandOver(ctx, what, func(d *shimproto.Device) (file *os.File, err error) {
		switch d.Kind {
		case shimproto.KindConsole:
			file, err = r.Host.Consoles.Connect(ctx, string(m.UID), console.Serial)
		case shimproto.KindGuest:
			file, err = r.Host.Consoles.Connect(ctx, string(m.UID), console.GuestPort)
		case shimproto.KindExit:
			file, err = r.Host.Consoles.Connect(ctx, string(m.UID), console.ExitPort)
		case shimproto.KindDisplay: // the shim connects its viewers by it
			user, err := r.user(m)
			if err != nil {
				return nil, err
			}
			return r.Host.Consoles.OpenDisplay(string(m.UID), user)
		case shimproto.KindDHCP:
			i := slices.IndexFunc(m.NICs, func(n machine.NIC) bool { return n.Name == d.Name })
			d.Lease, file, err = r.lease(ctx, m, i, to)
		}
		return file, err
	})
}

// lease is what the shim tells NIC number nic by DHCP, and the socket that it does so on.
func (r *Reconciler) lease(ctx context.Context, m *machine.Machine, nic int, in Container) (*shimproto.Lease, *os.File, error) {
	ns, err := in.NetworkNamespace()
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	pod, err := r.Host.Network.FindPodInterface(ctx, ns)
	if err != nil {
		return nil, nil, err
	}
	n := m.NICs[nic]
	socket, err := r.Host.Network.DHCPSocket(ctx, ns, n.Tap)
	if err != nil {
		return nil, nil, err
	}
	return &shimproto.Lease{
		MAC: shimproto.MAC(berth.MAC(m.UID, nic)), Address: n.Address, Router: n.Gateway, MTU: pod.MTU, Hostname: m.Name,
	}, socket, nil
}
