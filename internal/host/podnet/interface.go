package podnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// PodInterface is the pod's own interface, which its CNI made.
type PodInterface struct {
	// Name is the interface's, often eth0.
	Name string
	// Address is the pod's IPv4 address, with the length of its prefix.
	Address netip.Prefix
	// MTU is in bytes. DHCP gives the guest the same.
	MTU int

	link netlink.Link
}

// FindPodInterface returns the interface that the pod's IPv4 default route leads to.
func (Pods) FindPodInterface(ctx context.Context, ns *os.File) (PodInterface, error) {
	return inPod(ctx, ns, findPodInterface)
}

func findPodInterface(h *netlink.Handle) (PodInterface, error) {
	defaults := &netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST} // without a destination
	routes, err := h.RouteListFiltered(netlink.FAMILY_V4, defaults, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE|netlink.RT_FILTER_DST)
	if err != nil {
		return PodInterface{}, fmt.Errorf("listing the pod's routes: %w", err)
	}
	if len(routes) == 0 {
		return PodInterface{}, userError(errors.New("the pod has no IPv4 default route; Berth needs a cluster with IPv4 pods"))
	}
	best := slices.MinFunc(routes, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	index := best.LinkIndex
	if index == 0 && len(best.MultiPath) > 0 {
		index = best.MultiPath[0].LinkIndex
	}
	link, err := h.LinkByIndex(index)
	if err != nil {
		return PodInterface{}, fmt.Errorf("reading the pod's interface: %w", err)
	}
	pod := PodInterface{Name: link.Attrs().Name, MTU: link.Attrs().MTU, link: link}
	addrs, err := h.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return PodInterface{}, fmt.Errorf("listing addresses of %s: %w", pod.Name, err)
	}
	for _, a := range addrs {
		address, ok := netip.AddrFromSlice(a.IP.To4())
		if ok && a.Scope == unix.RT_SCOPE_UNIVERSE && a.Flags&unix.IFA_F_SECONDARY == 0 {
			bits, _ := a.Mask.Size()
			pod.Address = netip.PrefixFrom(address, bits)
			return pod, nil
		}
	}
	return PodInterface{}, userError(fmt.Errorf("the pod's interface %s has no IPv4 address; Berth needs a cluster with IPv4 pods", pod.Name))
}

// Settings of an interface, as linux/ip.h and linux/if_link.h number them.
const (
	confForwarding    = 1  // IPV4_DEVCONF_FORWARDING
	confRouteLocalnet = 26 // IPV4_DEVCONF_ROUTE_LOCALNET

	inetConf          = 1 // IFLA_INET_CONF
	nlAddrGenModeNone = 1 // IN6_ADDR_GEN_MODE_NONE
)

// setIPv4Conf sets what /proc/sys/net/ipv4/conf/INTERFACE has to 1, without that file.
func setIPv4Conf(index int, settings ...int) error {
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	conf := spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil)
	for _, setting := range settings {
		conf.AddRtAttr(setting, nl.Uint32Attr(1))
	}
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index) //nolint:gosec // the kernel's own number, an int32 there, too
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	req.AddData(msg)
	req.AddData(spec)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
