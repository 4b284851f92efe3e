package podnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// Config is the whole network of one guest, as Connect makes it.
type Config struct {
	// Interfaces are the guest's, all of them. The pod's address leads to the first.
	Interfaces []Interface
	// ReservedPorts are TCP ports of the pod's 127.0.0.1 that the shim serves. The others lead to the guest.
	ReservedPorts []uint16
}

// Interface is one network interface of the guest.
type Interface struct {
	// Tap is the name of its tap, which libvirtd made in the host's namespace; at most 15 bytes.
	Tap string
	// MAC is the guest's.
	MAC net.HardwareAddr
	// Address is the guest's private IPv4 address with the length of the prefix that it shares with the gateway alone.
	Address netip.Prefix
	// Gateway is the tap's address in the pod.
	Gateway netip.Addr
}

func (c Config) validate() error {
	for i, n := range c.Interfaces {
		switch {
		case n.Tap == "" || len(n.Tap) >= unix.IFNAMSIZ:
			return fmt.Errorf("%q is not a valid interface name", n.Tap)
		case !n.Address.Addr().Is4() || !n.Address.Contains(n.Gateway) || n.Address.Addr() == n.Gateway:
			return fmt.Errorf("%s is not a guest's address with the gateway %s in its subnet", n.Address, n.Gateway)
		case len(n.MAC) != 6:
			return fmt.Errorf("%s is not an Ethernet address", n.MAC)
		}
		for _, other := range c.Interfaces[:i] {
			if n.Tap == other.Tap || n.Address.Overlaps(other.Address) {
				return fmt.Errorf("interfaces %s (%s) and %s (%s) have a name or a subnet in common", other.Tap, other.Address, n.Tap, n.Address)
			}
		}
	}
	return nil
}

// unreachableMetric is worse than that of any route which a pod has to the guest's subnet.
const unreachableMetric = 4096

// Connect moves the guest's taps into the pod's network namespace, and makes guest and pod one on the network: who calls
// the pod's IP, on any port, reaches the guest, and what the guest sends comes from the pod's IP. A tap that was connected
// and is not in the list any more is set down and loses its rules. Connect may be repeated, also after it was cut off at
// any point; connections survive that. Returned is the pod's own interface.
func (Pods) Connect(ctx context.Context, ns *os.File, c Config) (PodInterface, error) {
	if err := c.validate(); err != nil {
		return PodInterface{}, err
	}
	if err := moveTaps(c, ns); err != nil {
		return PodInterface{}, failed(err)
	}
	return inPod(ctx, ns, func(h *netlink.Handle) (PodInterface, error) {
		pod, err := findPodInterface(h)
		if err != nil {
			return PodInterface{}, err
		}
		return pod, configure(h, pod, c)
	})
}

// moveTaps moves the taps from the host's namespace into the pod's. One that is not in the host's may be there already.
func moveTaps(c Config, ns *os.File) error {
	if err := refuseHostNamespace(ns); err != nil {
		return err
	}
	h, err := newHandle()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, n := range c.Interfaces {
		tap, err := tapIn(h, n.Tap)
		if err == nil && tap != nil {
			err = h.LinkSetNsFd(tap, int(ns.Fd()))
		}
		if err != nil && !errors.Is(err, unix.ENODEV) { // somebody was faster
			return fmt.Errorf("moving tap %s into the pod: %w", n.Tap, err)
		}
	}
	return nil
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

// configure sets up everything in the pod. No tap is up without its ingress rules.
func configure(h *netlink.Handle, pod PodInterface, c Config) error {
	taps := make([]netlink.Link, len(c.Interfaces))
	for i, n := range c.Interfaces {
		if pod.Address.Overlaps(n.Address) {
			return userError(fmt.Errorf(
				"the guests' subnet %s overlaps with the pod's %s; give the agent another one", n.Address.Masked(), pod.Address))
		}
		tap, err := tapIn(h, n.Tap)
		if err != nil {
			return err
		}
		if tap == nil {
			return fmt.Errorf("tap %s is neither on the host nor in the pod: its QEMU has ended", n.Tap)
		}
		taps[i] = tap
	}
	for i, n := range c.Interfaces {
		if err := configureTap(h, taps[i], n, pod.MTU); err != nil {
			return fmt.Errorf("connecting tap %s: %w", n.Tap, err)
		}
	}
	if err := setIPv4Conf(pod.link.Attrs().Index, confForwarding); err != nil {
		return fmt.Errorf("enabling forwarding on the pod's interface %s: %w", pod.Name, err)
	}
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	if err := setRemovedDown(h, conn, c); err != nil {
		return err
	}
	if err := replaceTables(conn, pod, c); err != nil {
		return err
	}
	for i, n := range c.Interfaces {
		if err := setUp(h, taps[i], n); err != nil {
			return fmt.Errorf("connecting tap %s: %w", n.Tap, err)
		}
	}
	return nil
}

// configureTap does what a tap needs before it has its rules.
func configureTap(h *netlink.Handle, tap netlink.Link, n Interface, mtu int) error {
	subnet := &net.IPNet{IP: n.Address.Masked().Addr().AsSlice(), Mask: net.CIDRMask(n.Address.Bits(), 32)}
	gateway := &netlink.Addr{IPNet: &net.IPNet{IP: n.Gateway.AsSlice(), Mask: subnet.Mask}}
	genMode := h.LinkSetIP6AddrGenMode(tap, nlAddrGenModeNone)
	if errors.Is(genMode, unix.EAFNOSUPPORT) || errors.Is(genMode, unix.EOPNOTSUPP) { // a kernel, or an interface, without IPv6
		genMode = nil
	}
	// Without its tap the guest's address must not leave the pod.
	unreachable := &netlink.Route{Dst: subnet, Type: unix.RTN_UNREACHABLE, Priority: unreachableMetric}
	return cmp.Or( // none of these needs another
		fault.Doing(h.LinkSetMTU(tap, mtu), "setting MTU"),
		fault.Doing(genMode, "disabling IPv6 address generation"),
		fault.Doing(h.AddrReplace(tap, gateway), "adding address"),
		fault.Doing(setIPv4Conf(tap.Attrs().Index, confForwarding, confRouteLocalnet), "enabling forwarding"),
		fault.Doing(h.RouteReplace(unreachable), "adding an unreachable route to the guest's subnet"),
	)
}

func setUp(h *netlink.Handle, tap netlink.Link, n Interface) error {
	guest := &netlink.Neigh{LinkIndex: tap.Attrs().Index, IP: n.Address.Addr().AsSlice(), HardwareAddr: n.MAC, State: netlink.NUD_PERMANENT}
	return cmp.Or(fault.Doing(h.LinkSetUp(tap), "setting up"), fault.Doing(h.NeighSet(guest), "adding the guest's neighbour entry"))
}

// setRemovedDown sets down taps that have rules and are to lose them: one without ingress rules could reach whatever
// listens in the pod.
func setRemovedDown(h *netlink.Handle, conn *nftables.Conn, c Config) error {
	filtered, err := tapsWithIngressRules(conn)
	if err != nil {
		return err
	}
	for _, name := range filtered {
		if slices.ContainsFunc(c.Interfaces, func(n Interface) bool { return n.Tap == name }) {
			continue
		}
		tap, err := tapIn(h, name)
		if err == nil && tap != nil { // or its QEMU has ended, or the guest has let it go
			err = h.LinkSetDown(tap)
		}
		if err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("setting down tap %s: %w", name, err)
		}
	}
	return nil
}
