package agent

import (
	"context"
	"errors"
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

// namespace opens the berth's network namespace; the shim that it is read from was alive after.
func (a *Agent) namespace(g *guest) (*os.File, error) {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", g.link.shim.PID()))
	if err != nil {
		return nil, fault.ByTime(v1alpha1.ReasonNetworkFailed, fmt.Errorf("opening the berth's network namespace: %w", err))
	}
	if !g.link.shim.Alive() {
		_ = ns.Close()
		return nil, fault.ByTime(v1alpha1.ReasonNetworkFailed, errors.New("the berth's container has ended"))
	}
	return ns, nil
}

func (a *Agent) plug(ctx context.Context, g *guest) error {
	if len(g.VM.Spec.Networks) == 0 {
		return nil
	}
	ns, err := a.namespace(g)
	if err != nil {
		return err
	}
	defer ns.Close()
	_, err = podnet.Connect(ctx, ns, podnet.Config{Interfaces: []podnet.Interface{a.nic(g)}})
	return err
}

// attach hands the guest's console, and the socket for its DHCP, to the shim.
func (a *Agent) attach(ctx context.Context, g *guest) error {
	console, err := (&net.Dialer{}).DialContext(ctx, "unix", a.consolePath(string(g.uid)))
	if err != nil {
		return fault.ByTime(v1alpha1.ReasonStarting, fmt.Errorf("connecting to the console: %w", err))
	}
	defer console.Close()
	socket, err := console.(*net.UnixConn).File()
	if err != nil {
		return fmt.Errorf("taking the console's socket: %w", err)
	}
	defer socket.Close()
	message, files := shimproto.Attach{InstanceID: g.link.container}, []*os.File{socket}
	if len(g.VM.Spec.Networks) > 0 {
		lease, dhcp, err := a.lease(ctx, g)
		if err != nil {
			return err
		}
		defer dhcp.Close()
		message.Lease, files = lease, append(files, dhcp)
	}
	return g.link.send(ctx, message, files...)
}

func (a *Agent) lease(ctx context.Context, g *guest) (*shimproto.Lease, *os.File, error) {
	ns, err := a.namespace(g)
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
