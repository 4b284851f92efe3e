package agent

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/podnet"
)

// nic is the guest's one network interface.
func (a *Agent) nic(g *guest) podnet.Interface {
	n := g.VM.Spec.Networks[0].Name
	gateway := a.GuestSubnet.Masked().Addr().Next()
	return podnet.Interface{
		Tap: berth.TapName(g.uid, n), MAC: berth.MAC(g.uid, n),
		Gateway: gateway, Address: netip.PrefixFrom(gateway.Next(), a.GuestSubnet.Bits()),
	}
}

func (a *Agent) plug(ctx context.Context, g *guest) error {
	if len(g.VM.Spec.Networks) == 0 {
		return nil
	}
	ns, err := g.link.NetworkNamespace()
	if err != nil {
		return err
	}
	defer ns.Close()
	_, err = podnet.Connect(ctx, ns, podnet.Config{Interfaces: []podnet.Interface{a.nic(g)}})
	return err
}

// devices are what the guest needs its shim to take. A VM that is gone needs none.
func devices(vm *v1alpha1.VirtualMachine) []shimproto.Device {
	if vm == nil {
		return nil
	}
	list := []shimproto.Device{{Kind: shimproto.KindConsole, Name: "console"}}
	for _, n := range vm.Spec.Networks {
		list = append(list, shimproto.Device{Kind: shimproto.KindLease, Name: n.Name})
	}
	return list
}

// attach hands the guest's devices to the shim, those that it takes. Of the others the report tells.
func (a *Agent) attach(ctx context.Context, g *guest) error {
	return g.link.HandOver(ctx, devices(g.VM), func(d *shimproto.Device) (file *os.File, err error) {
		switch d.Kind {
		case shimproto.KindConsole:
			file, err = a.console(ctx, g)
		case shimproto.KindLease:
			d.Lease, file, err = a.lease(ctx, g)
		}
		return file, err
	})
}

// console connects to the socket of QEMU's serial console.
func (a *Agent) console(ctx context.Context, g *guest) (*os.File, error) {
	console, err := (&net.Dialer{}).DialContext(ctx, "unix", a.consolePath(string(g.uid)))
	if err != nil {
		return nil, fault.ByTime(v1alpha1.ReasonStarting, fmt.Errorf("connecting to the console: %w", err))
	}
	defer console.Close()
	socket, err := console.(*net.UnixConn).File()
	if err != nil {
		return nil, fmt.Errorf("taking the console's socket: %w", err)
	}
	return socket, nil
}

func (a *Agent) lease(ctx context.Context, g *guest) (*shimproto.Lease, *os.File, error) {
	ns, err := g.link.NetworkNamespace()
	if err != nil {
		return nil, nil, err
	}
	defer ns.Close()
	pod, err := podnet.FindPodInterface(ctx, ns)
	if err != nil {
		return nil, nil, err
	}
	n := a.nic(g)
	socket, err := podnet.DHCPSocket(ctx, ns, n.Tap)
	if err != nil {
		return nil, nil, err
	}
	return &shimproto.Lease{MAC: shimproto.MAC(n.MAC), Address: n.Address, Router: n.Gateway, MTU: pod.MTU, Hostname: g.VM.Name}, socket, nil
}
