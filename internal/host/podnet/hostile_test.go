package podnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var (
	everyone  = net.HardwareAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	bridges   = net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0}    // IEEE 802.1D
	lldp      = net.HardwareAddr{0x01, 0x80, 0xc2, 0, 0, 0x0e} // IEEE 802.1AB
	allNodes6 = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}       // RFC 2464, 7

	neighbourPod = netip.MustParseAddr("10.244.0.6")
)

// tagged puts VLAN tags before the payload of a frame, each an Ethernet type and an ID.
func tagged(f []byte, tags ...uint16) []byte {
	head := slices.Clone(f[:12])
	for _, word := range tags {
		head = binary.BigEndian.AppendUint16(head, word)
	}
	return append(head, f[12:]...)
}

// padded is a payload that a mark is appended to, by which its frame is known wherever it comes out.
func padded(payload []byte, mark string) []byte {
	return append(append(slices.Clone(payload), make([]byte, max(0, 46-len(payload)))...), mark...)
}

// mark is the text that names a kind of frame in the frame itself.
func mark(kind string) string { return "<" + kind + ">" }

// routerAdvertisement makes an IPv6 packet with one, and without its checksum, which nobody on the way looks at. RFC 4861, 4.2.
func routerAdvertisement() []byte {
	p := make([]byte, 40+16)
	p[0], p[5], p[6], p[7] = 0x60, 16, unix.IPPROTO_ICMPV6, 255
	copy(p[8:], netip.MustParseAddr("fe80::1").AsSlice())
	copy(p[24:], netip.MustParseAddr("ff02::1").AsSlice())
	p[40], p[44], p[46] = 134, 64, 0xff
	return p
}

// sourceRouted is a datagram with a loose source route by way of the neighbour. RFC 791, 3.1.
func sourceRouted(from, to netip.AddrPort, text string) []byte {
	plain := datagram(from, to, text)
	p := append(slices.Clone(plain[:20]), 131, 7, 4)
	p = append(append(p, neighbourPod.AsSlice()...), 0)
	p = append(p, plain[20:]...)
	p[0] = 0x47
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	clear(p[10:12])
	binary.BigEndian.PutUint16(p[10:], checksum(p[:28]))
	return p
}

// hostileFrames are what a guest with a raw socket sends that nobody outside of its pod may see, by kind.
func hostileFrames(gateway net.HardwareAddr) map[string][]byte {
	public := netip.MustParseAddrPort("10.244.0.1:5353")
	from := func(ip string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), 68) }
	to := func(mac net.HardwareAddr, source net.HardwareAddr, ethertype uint16, payload []byte) []byte {
		f := frame(source, ethertype, payload)
		copy(f, mac)
		return f
	}
	ip := func(payload []byte) []byte { return to(gateway, guestMAC, unix.ETH_P_IP, payload) }
	own := from("10.0.2.2")
	arp := func(hardware net.HardwareAddr, claimed netip.Addr, kind string) []byte {
		return to(everyone, guestMAC, unix.ETH_P_ARP, padded(arpReply(hardware, claimed, claimed), mark(kind)))
	}
	return map[string][]byte{
		"another pod's address":       ip(datagram(netip.AddrPortFrom(neighbourPod, 7), public, mark("another pod's address"))),
		"another guest's address":     ip(datagram(from("10.0.2.77"), public, mark("another guest's address"))),
		"the gateway's address":       ip(datagram(from("10.0.2.1"), public, mark("the gateway's address"))),
		"the pod's address":           ip(datagram(from("10.244.0.5"), public, mark("the pod's address"))),
		"an address of loopback":      ip(datagram(from("127.0.0.1"), public, mark("an address of loopback"))),
		"no address, to DHCP's port":  ip(datagram(from("0.0.0.0"), netip.MustParseAddrPort("10.244.0.1:67"), mark("no address, to DHCP's port"))),
		"to loopback":                 ip(datagram(own, netip.MustParseAddrPort("127.0.0.1:5353"), mark("to loopback"))),
		"to everybody":                to(everyone, guestMAC, unix.ETH_P_IP, datagram(own, netip.MustParseAddrPort("255.255.255.255:5353"), mark("to everybody"))),
		"to everybody of the pods":    to(everyone, guestMAC, unix.ETH_P_IP, datagram(own, netip.MustParseAddrPort("10.244.0.255:5353"), mark("to everybody of the pods"))),
		"to a multicast group":        ip(datagram(own, netip.MustParseAddrPort("224.0.0.251:5353"), mark("to a multicast group"))),
		"a source route":              ip(sourceRouted(own, public, mark("a source route"))),
		"another hardware address":    to(gateway, other, unix.ETH_P_IP, datagram(own, public, mark("another hardware address"))),
		"a group's hardware address":  to(gateway, everyone, unix.ETH_P_IP, datagram(own, public, mark("a group's hardware address"))),
		"VLAN 5":                      tagged(ip(datagram(own, public, mark("VLAN 5"))), unix.ETH_P_8021Q, 5),
		"VLAN 5 in VLAN 0":            tagged(ip(datagram(own, public, mark("VLAN 5 in VLAN 0"))), unix.ETH_P_8021Q, 0, unix.ETH_P_8021Q, 5),
		"a service provider's VLAN":   tagged(ip(datagram(own, public, mark("a service provider's VLAN"))), unix.ETH_P_8021AD, 7, unix.ETH_P_8021Q, 5),
		"ARP for the gateway":         arp(guestMAC, gatewayIP, "ARP for the gateway"),
		"ARP for another pod":         arp(guestMAC, neighbourPod, "ARP for another pod"),
		"ARP for the host":            arp(guestMAC, hostIP.Addr(), "ARP for the host"),
		"ARP with another's hardware": arp(other, guestIP.Addr(), "ARP with another's hardware"),
		"a DHCP offer":                to(everyone, guestMAC, unix.ETH_P_IP, datagram(netip.MustParseAddrPort("10.0.2.2:67"), netip.MustParseAddrPort("255.255.255.255:68"), mark("a DHCP offer"))),
		"a router advertisement":      to(allNodes6, guestMAC, unix.ETH_P_IPV6, padded(routerAdvertisement(), mark("a router advertisement"))),
		"LLDP":                        to(lldp, guestMAC, unix.ETH_P_LLDP, padded([]byte{2, 7, 4, 2, 0, 0, 0, 0, 9}, mark("LLDP"))),
		"a bridge's BPDU":             to(bridges, guestMAC, 38, padded([]byte{0x42, 0x42, 3, 0, 0, 0, 0, 0}, mark("a bridge's BPDU"))),
		"an unknown type":             to(everyone, guestMAC, 0x88b5, padded(nil, mark("an unknown type"))),
	}
}

// TestNothingButHonestFramesComesOut sends by a guest's NIC what a guest with a raw socket can, while a witness takes
// every frame that comes out of the pod.
func TestNothingButHonestFramesComesOut(t *testing.T) {
	l := newLab(t)
	l.connect(nic0)
	witness := l.witness("vethpod")
	honest := map[string][]byte{}
	for _, kind := range []string{"plain", "VLAN 0"} {
		f := frame(guestMAC, unix.ETH_P_IP, datagram(netip.MustParseAddrPort("10.0.2.2:7"), netip.MustParseAddrPort("10.244.0.1:5353"), mark(kind)))
		copy(f, l.gatewayMAC())
		honest[kind] = f
	}
	honest["VLAN 0"] = tagged(honest["VLAN 0"], unix.ETH_P_8021Q, 0)

	hostile := hostileFrames(l.gatewayMAC())
	for kind, f := range hostile {
		if markOf(f) != kind {
			t.Fatalf("the frame with %s is not marked so: % x", kind, f)
		}
		if _, err := l.tap.Write(f); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
	}
	for _, f := range honest {
		if _, err := l.tap.Write(f); err != nil {
			t.Fatal(err)
		}
	}
	// Frames keep their order: when both honest ones are out, so is all that came before.
	seen := map[string]bool{}
	for !seen["plain"] || !seen["VLAN 0"] {
		f, err := witness.next()
		if err != nil {
			t.Fatalf("waiting for the honest frames, with %v seen: %v", seen, err)
		}
		if kind := markOf(f); kind != "" {
			seen[kind] = true
			if _, is := honest[kind]; !is {
				t.Errorf("%s came out: % x", kind, f)
			}
		}
		if !slices.Equal(f[6:12], witness.mac) || !fromPod(f) {
			t.Errorf("what came out is not the pod's own: % x", f)
		}
	}
	l.in(l.pod, func(h *netlink.Handle) error {
		neighbours, err := h.NeighList(0, netlink.FAMILY_V4)
		for _, n := range neighbours {
			if n.HardwareAddr.String() == other.String() || n.HardwareAddr.String() == guestMAC.String() && !n.IP.Equal(guestIP.Addr().AsSlice()) {
				t.Errorf("the pod has learned %s at %s", n.IP, n.HardwareAddr)
			}
		}
		return err
	})
}

// markPattern finds a mark at a frame's end, where each is: hardware addresses are random here, and have held "<" and ">".
var markPattern = regexp.MustCompile(`<([\w ,']+)>$`)

// markOf is the kind of frame that f is marked as, or "".
func markOf(f []byte) string {
	if found := markPattern.FindSubmatch(f); found != nil {
		return string(found[1])
	}
	return ""
}

func TestHardwareAddressesAreNoMark(t *testing.T) {
	f := frame(net.HardwareAddr{0x5a, '<', 'V', '>', 0x81, 0xf9}, unix.ETH_P_IP, nil)
	if is := markOf(f); is != "" {
		t.Errorf("a frame without a mark is marked %q", is)
	}
	if is := markOf(append(f, mark("plain")...)); is != "plain" {
		t.Errorf("the frame marked plain is marked %q", is)
	}
}

// fromPod: the frame is the pod's by its network address too, or one of the kernel's own about IPv6 on the pod's network,
// which this test does not close.
func fromPod(f []byte) bool {
	pod := podIP.Addr().AsSlice()
	switch binary.BigEndian.Uint16(f[12:]) {
	case unix.ETH_P_IP:
		return slices.Equal(f[14+12:14+16], pod)
	case unix.ETH_P_ARP:
		return slices.Equal(f[14+14:14+18], pod)
	case unix.ETH_P_IPV6:
		return markOf(f) == ""
	}
	return false
}

// witness takes each frame that arrives at an interface of the host's, from the pod behind it.
type witness struct {
	fd  int
	mac net.HardwareAddr // of the pod's own interface
}

func (l *lab) witness(name string) *witness {
	l.t.Helper()
	w := &witness{}
	l.in(l.pod, func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err == nil {
			w.mac = link.Attrs().HardwareAddr
		}
		return err
	})
	l.in(nil, func(h *netlink.Handle) error {
		link, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		const all = unix.ETH_P_ALL << 8 // in network order
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
			return err
		}
		l.t.Cleanup(func() { _ = unix.Close(w.fd) })
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(waitTimeout / time.Second)}); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Attrs().Index})
	})
	return w
}

// next is the next frame from the pod.
func (w *witness) next() ([]byte, error) {
	for {
		f := make([]byte, 2048)
		n, from, err := unix.Recvfrom(w.fd, f, 0)
		if err != nil {
			return nil, err
		}
		if ll, ok := from.(*unix.SockaddrLinklayer); ok && ll.Pkttype != unix.PACKET_OUTGOING && n >= 14 {
			return f[:n], nil
		}
	}
}
