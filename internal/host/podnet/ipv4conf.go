package podnet

import (
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

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
