package podnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Wiring says how a guest is wired into its berth.
type Wiring struct {
	// NetNS is the pod's network namespace, an open /proc/PID/ns/net.
	NetNS *os.File
	// Tap is the name of the guest's tap, which libvirtd made in the host's namespace; at most 15 bytes.
	Tap string
	// Guest is the guest's private IPv4 address with the length of the prefix that it shares with the gateway alone.
	Guest netip.Prefix
	// Gateway is the tap's address in the pod.
	Gateway netip.Addr
	// MAC is the guest's.
	MAC net.HardwareAddr
}

func (w Wiring) validate() error {
	switch {
	case w.Tap == "" || len(w.Tap) >= unix.IFNAMSIZ:
		return fmt.Errorf("%q is no name of an interface", w.Tap)
	case !w.Guest.Addr().Is4() || !w.Guest.Contains(w.Gateway) || w.Guest.Addr() == w.Gateway:
		return fmt.Errorf("%s and %s are no guest and its gateway", w.Guest, w.Gateway)
	case len(w.MAC) != 6:
		return fmt.Errorf("%s is no Ethernet address", w.MAC)
	}
	return nil
}

// unreachableMetric is worse than that of any route which a pod has to the guest's subnet.
const unreachableMetric = 4096

// Plug moves the tap into the pod and makes guest and pod one on the network:
// who calls the pod's IP, on any port, reaches the guest, and what the guest
// sends comes from the pod's IP. It may be repeated, also after it was cut off
// at any point; connections survive that. Returned is what the guest is plugged into.
func Plug(ctx context.Context, w Wiring) (Uplink, error) {
	if err := w.validate(); err != nil {
		return Uplink{}, err
	}
	return classified(plug(ctx, w))
}

func plug(ctx context.Context, w Wiring) (Uplink, error) {
	if err := foreign(w.NetNS); err != nil {
		return Uplink{}, err
	}
	if err := move(w.Tap, w.NetNS); err != nil {
		return Uplink{}, fmt.Errorf("moving tap %s into the pod: %w", w.Tap, err)
	}
	return inside(ctx, w.NetNS, func() (Uplink, error) {
		h, err := handle()
		if err != nil {
			return Uplink{}, err
		}
		defer h.Close()
		up, err := findUplink(h)
		if err != nil {
			return Uplink{}, err
		}
		if up.Address.Overlaps(w.Guest) {
			return Uplink{}, byUser(fmt.Errorf(
				"the guests' subnet %s overlaps with the pod's %s; give the agent another one", w.Guest.Masked(), up.Address))
		}
		tap, err := tapIn(h, w.Tap)
		if err != nil {
			return Uplink{}, err
		}
		if tap == nil {
			return Uplink{}, fmt.Errorf("tap %s is neither on the host nor in the pod: its QEMU has ended", w.Tap)
		}
		return up, wire(h, w, up, tap)
	})
}

// move takes the tap from the host's namespace into the pod's. One that is not in the host's may be there already.
func move(name string, ns *os.File) error {
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	tap, err := tapIn(h, name)
	if err != nil || tap == nil {
		return err
	}
	err = h.LinkSetNsFd(tap, int(ns.Fd()))
	if errors.Is(err, unix.ENODEV) {
		return nil // somebody was faster
	}
	return err
}

// tapIn returns the tap of that name, nil if there is none. Another kind of interface is never taken for one.
func tapIn(h *netlink.Handle, name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	if _, none := errors.AsType[netlink.LinkNotFoundError](err); none {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("looking for tap %s: %w", name, err)
	}
	if link.Type() != "tuntap" {
		return nil, fmt.Errorf("interface %s is a %s, not a tap", name, link.Type())
	}
	return link, nil
}

// wire sets up everything in the pod. The tap goes up when all that guards it is in place.
func wire(h *netlink.Handle, w Wiring, up Uplink, tap netlink.Link) error {
	index := tap.Attrs().Index
	subnet := &net.IPNet{IP: w.Guest.Masked().Addr().AsSlice(), Mask: net.CIDRMask(w.Guest.Bits(), 32)}
	gateway := &netlink.Addr{IPNet: &net.IPNet{IP: w.Gateway.AsSlice(), Mask: subnet.Mask}}
	for _, step := range []struct {
		doing string
		do    func() error
	}{
		{"setting MTU", func() error { return h.LinkSetMTU(tap, up.MTU) }},
		{"leaving IPv6 off", func() error { return ignoreAbsent(h.LinkSetIP6AddrGenMode(tap, nlAddrGenModeNone)) }},
		{"adding address", func() error { return h.AddrReplace(tap, gateway) }},
		{"forwarding", func() error { return setInet(index, map[int]uint32{confForwarding: 1, confRouteLocalnet: 1}) }},
		{"forwarding from the pod's interface", func() error {
			return setInet(up.link.Attrs().Index, map[int]uint32{confForwarding: 1})
		}},
		{"closing the subnet", func() error { // without its tap the guest's address must not leave the pod
			return h.RouteReplace(&netlink.Route{Dst: subnet, Type: unix.RTN_UNREACHABLE, Priority: unreachableMetric})
		}},
		{"setting rules", func() error { return filter(w, up) }},
		{"setting up", func() error { return h.LinkSetUp(tap) }},
		{"naming the guest's hardware address", func() error {
			return h.NeighSet(&netlink.Neigh{
				LinkIndex: index, IP: w.Guest.Addr().AsSlice(), HardwareAddr: w.MAC, State: netlink.NUD_PERMANENT,
			})
		}},
	} {
		if err := step.do(); err != nil {
			return fmt.Errorf("wiring tap %s: %s: %w", w.Tap, step.doing, err)
		}
	}
	return nil
}

// ignoreAbsent passes over a kernel, or an interface, without IPv6.
func ignoreAbsent(err error) error {
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
