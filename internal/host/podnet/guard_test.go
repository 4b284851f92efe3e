package podnet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/host/namespace"
	"github.com/berth-dev/berth/internal/shim/dhcp"
	"github.com/berth-dev/berth/test/env"
)

// frame makes an Ethernet frame, which send addresses.
func frame(from net.HardwareAddr, ethertype uint16, payload []byte) []byte {
	f := append(append(make([]byte, 6), from...), byte(ethertype>>8), byte(ethertype))
	return append(f, payload...)
}

// datagram makes an IPv4 UDP datagram without a UDP checksum.
func datagram(from, to netip.AddrPort, text string) []byte {
	p := make([]byte, 28, 28+len(text))
	p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(p[2:], uint16(28+len(text)))
	copy(p[12:], from.Addr().AsSlice())
	copy(p[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(p[20:], from.Port())
	binary.BigEndian.PutUint16(p[22:], to.Port())
	binary.BigEndian.PutUint16(p[24:], uint16(8+len(text)))
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	return append(p, text...)
}

// syn makes an IPv4 packet that asks for a TCP connection.
func syn(from, to netip.AddrPort) []byte {
	p := datagram(from, to, "in place of TCP's own")[:40]
	p[9] = unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(p[2:], 40)
	clear(p[24:])
	p[32], p[33] = 0x50, 2 // five words, SYN
	binary.BigEndian.PutUint16(p[10:], 0)
	binary.BigEndian.PutUint16(p[10:], checksum(p[:20]))
	pseudo := append(append([]byte{}, p[12:20]...), 0, unix.IPPROTO_TCP, 0, 20)
	binary.BigEndian.PutUint16(p[36:], checksum(append(pseudo, p[20:]...)))
	return p
}

// checksum is the Internet's, of an even number of bytes. RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum&0xffff + sum>>16
	return ^uint16(sum + sum>>16)
}

// arpReply makes an ARP reply that claims an address. RFC 826.
func arpReply(mac net.HardwareAddr, claimed, to netip.Addr) []byte {
	p := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, mac...)
	p = append(append(p, claimed.AsSlice()...), 0xfe, 0, 0, 0, 0, 9)
	return append(p, to.AsSlice()...)
}

var other = net.HardwareAddr{2, 0, 0, 0, 0, 0x66}

// arrived returns what waits in a socket, and waits for nothing: a read after its deadline would not even look.
func (l *lab) arrived(socket syscall.Conn) string {
	l.t.Helper()
	raw, err := socket.SyscallConn()
	if err != nil {
		l.t.Fatal(err)
	}
	buf, n := make([]byte, 64), 0
	if e := raw.Read(func(fd uintptr) bool {
		n, _, err = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
		return true
	}); e != nil {
		l.t.Fatal(e)
	}
	if err != nil && !errors.Is(err, unix.EAGAIN) {
		l.t.Fatal(err)
	}
	return string(buf[:max(n, 0)])
}

func TestGuestLies(t *testing.T) {
	l := newLab(t)
	l.configure(Config{Interfaces: []Interface{nic0}, ReservedPorts: []uint16{5900}})
	outside := l.listen(nil, "10.244.0.1:5353")
	pod := l.listen(l.pod, "0.0.0.0:5353")
	tcp, err := at(l.ctx, l.pod, func() (*net.IPConn, error) { return net.ListenIP("ip4:tcp", nil) }) // what comes before any listener
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	shim := netip.MustParseAddrPort("127.0.0.1:5900")
	me, local, public := netip.MustParseAddrPort("10.0.2.2:7"), netip.MustParseAddrPort("127.0.0.1:5353"), netip.MustParseAddrPort("10.244.0.1:5353")
	for name, lie := range map[string][]byte{
		"another hardware address":                    frame(other, unix.ETH_P_IP, datagram(me, public, "lie")),
		"a neighbour's address":                       frame(guestMAC, unix.ETH_P_IP, datagram(netip.MustParseAddrPort("10.0.2.3:7"), public, "lie")),
		"the pod's address":                           frame(guestMAC, unix.ETH_P_IP, datagram(netip.MustParseAddrPort("10.244.0.5:7"), public, "lie")),
		"no address":                                  frame(guestMAC, unix.ETH_P_IP, datagram(netip.MustParseAddrPort("0.0.0.0:68"), public, "lie")),
		"the pod's localhost":                         frame(guestMAC, unix.ETH_P_IP, datagram(me, local, "lie")),
		"a port of the shim's":                        frame(guestMAC, unix.ETH_P_IP, syn(me, shim)),
		"a port of the shim's, at the gateway":        frame(guestMAC, unix.ETH_P_IP, syn(me, netip.MustParseAddrPort("10.0.2.1:5900"))),
		"a port of the shim's, as the pod's own":      frame(guestMAC, unix.ETH_P_IP, syn(netip.MustParseAddrPort("127.0.0.1:7"), shim)),
		"the pod's localhost, as the pod's own":       frame(guestMAC, unix.ETH_P_IP, datagram(netip.MustParseAddrPort("127.0.0.1:7"), local, "lie")),
		"the gateway's own services":                  frame(guestMAC, unix.ETH_P_IP, datagram(me, netip.MustParseAddrPort("10.0.2.1:5353"), "lie")),
		"a service in the pod, as everybody":          frame(guestMAC, unix.ETH_P_IP, datagram(me, netip.MustParseAddrPort("255.255.255.255:5353"), "lie")),
		"IPv6":                                        frame(guestMAC, unix.ETH_P_IPV6, make([]byte, 40)),
		"the gateway's address by ARP":                frame(guestMAC, unix.ETH_P_ARP, arpReply(guestMAC, gatewayIP, gatewayIP)),
		"a neighbour's address by ARP":                frame(guestMAC, unix.ETH_P_ARP, arpReply(guestMAC, netip.MustParseAddr("10.0.2.3"), gatewayIP)),
		"its address at another hardware one, by ARP": frame(guestMAC, unix.ETH_P_ARP, arpReply(other, guestIP.Addr(), gatewayIP)),
		"a frame that is cut short":                   frame(guestMAC, unix.ETH_P_IP, []byte{0x45}),
	} {
		t.Run(name, func(t *testing.T) {
			l.send(lie)
			// Frames keep their order, so what comes first is what was let through.
			l.send(frame(guestMAC, unix.ETH_P_IP, datagram(me, public, "truth")))
			buf := make([]byte, 64)
			n, from, err := outside.ReadFromUDP(buf)
			if err != nil || string(buf[:n]) != "truth" || !from.IP.Equal(podIP.Addr().AsSlice()) {
				t.Errorf("outside read %q from %s, %v", buf[:n], from, err)
			}
			if got := l.arrived(pod); got != "" { // what the pod got, it got before
				t.Errorf("the pod read %q", got)
			}
			if got := l.arrived(tcp); got != "" {
				t.Errorf("the pod's TCP read % x", got)
			}
		})
	}
	l.in(l.pod, func(h *netlink.Handle) error {
		link, err := h.LinkByName(tapName)
		if err != nil {
			return err
		}
		neighbours, err := h.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
		for _, n := range neighbours {
			if n.State != netlink.NUD_NOARP && (!n.IP.Equal(guestIP.Addr().AsSlice()) || n.HardwareAddr.String() != guestMAC.String()) {
				t.Errorf("the pod has learned %s at %s", n.IP, n.HardwareAddr)
			}
		}
		return err
	})
}

func TestDHCPSocket(t *testing.T) {
	l := newLab(t)
	second := l.plug(nic1)
	if _, err := (Pods{}).DHCPSocket(l.ctx, l.pod, tapName); err == nil {
		t.Error("a tap that is not connected has given a socket")
	}
	l.connect(nic0, nic1)
	l.in(l.pod, func(h *netlink.Handle) error { // as some CNIs do
		link, err := h.LinkByName(tapName)
		if err != nil {
			return err
		}
		return setIPv4Conf(link.Attrs().Index, 8) // IPV4_DEVCONF_RP_FILTER, strict
	})
	socket := l.dhcpSocket(tapName)
	again, others := l.dhcpSocket(tapName), l.dhcpSocket(nic1.Tap)
	_ = again.Close() // an agent that could not know that the shim has one
	if err := socket.SetReadDeadline(time.Now().Add(waitTimeout)); err != nil {
		t.Fatal("it is not non-blocking:", err)
	}
	nobody, me, server := netip.MustParseAddrPort("0.0.0.0:68"), netip.MustParseAddrPort("10.0.2.2:68"), netip.MustParseAddrPort("255.255.255.255:67")
	theirs := netip.MustParseAddrPort("10.0.3.2:68")
	second.send(frame(nic1.MAC, unix.ETH_P_IP, datagram(theirs, netip.MustParseAddrPort("10.0.2.1:67"), "the other interface's")))
	second.send(frame(nic1.MAC, unix.ETH_P_IP, datagram(nobody, server, "the other interface's own")))
	for _, f := range [][]byte{
		frame(other, unix.ETH_P_IP, datagram(nobody, server, "another's")),
		frame(guestMAC, unix.ETH_P_IP, datagram(nobody, netip.MustParseAddrPort("255.255.255.255:68"), "another port")),
		frame(guestMAC, unix.ETH_P_IP, datagram(me, netip.MustParseAddrPort("127.0.0.1:67"), "the pod's localhost")),
		frame(guestMAC, unix.ETH_P_IP, datagram(me, netip.MustParseAddrPort("10.0.3.1:67"), "the other gateway")),
		frame(guestMAC, unix.ETH_P_ARP, arpReply(guestMAC, guestIP.Addr(), gatewayIP)),
		frame(guestMAC, unix.ETH_P_IP, datagram(nobody, server, "discover")),
		frame(guestMAC, unix.ETH_P_IP, datagram(me, netip.MustParseAddrPort("10.0.2.1:67"), "renew")),
		frame(guestMAC, unix.ETH_P_IP, datagram(me, server, "rebind")),
	} {
		l.send(f)
	}
	buf := make([]byte, 4096)
	for _, want := range []string{"discover", "renew", "rebind"} {
		if n, err := socket.Read(buf); err != nil || string(buf[:n]) != want {
			t.Fatalf("read %q, %v; want %q", buf[:n], err, want)
		}
	}
	if got := l.arrived(others); got != "the other interface's own" {
		t.Errorf("on the other interface arrived %q", got)
	}

	client := l.listen(l.vm, "0.0.0.0:68")
	raw := l.hearRaw(l.vm)
	for _, to := range [][4]byte{guestIP.Addr().As4(), {255, 255, 255, 255}} {
		if err := unix.Sendto(int(socket.Fd()), []byte("offer"), 0, &unix.SockaddrInet4{Port: 68, Addr: to}); err != nil {
			t.Fatal(err)
		}
		if n, from, err := client.ReadFromUDP(buf); err != nil || string(buf[:n]) != "offer" || from.String() != "10.0.2.1:67" {
			t.Errorf("the guest read %q from %s, %v", buf[:n], from, err)
		}
		n, _, err := unix.Recvfrom(raw, buf, 0)
		if err != nil || !bytes.HasSuffix(buf[:n], []byte("offer")) {
			t.Fatalf("the guest's interface got % x, %v", buf[:n], err)
		}
		if !bytes.Equal(buf[:6], guestMAC) && !bytes.Equal(buf[:6], bytes.Repeat([]byte{0xff}, 6)) || buf[14+26] != 0 || buf[14+27] != 0 {
			t.Errorf("the reply is % x: it has a checksum, or is for another hardware address", buf[:n])
		}
	}
}

func (l *lab) dhcpSocket(tap string) *os.File {
	l.t.Helper()
	socket, err := (Pods{}).DHCPSocket(l.ctx, l.pod, tap)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = socket.Close() })
	return socket
}

// hearRaw opens a packet socket that hears IPv4 in a namespace.
func (l *lab) hearRaw(ns *os.File) int {
	l.t.Helper()
	fd, err := at(l.ctx, ns, func() (int, error) {
		return unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.ETH_P_IP>>8|unix.ETH_P_IP&0xff<<8)
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(waitTimeout / time.Second)}); err != nil {
		l.t.Fatal(err)
	}
	return fd
}

func TestThreadsComeBackClean(t *testing.T) {
	l := newLab(t)
	own, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for range 200 {
		if _, err := namespace.In(l.ctx, l.pod, unix.CLONE_NEWNET, func() (int, error) { return 0, nil }); err != nil {
			t.Fatal(err)
		}
	}
	dirty := func() (threads []string) {
		links, err := filepath.Glob("/proc/self/task/*/ns/net")
		if err != nil || len(links) == 0 {
			t.Fatal("reading threads:", err)
		}
		for _, link := range links {
			// One that has ended meanwhile has no namespace.
			if ns, err := os.Readlink(link); err == nil && ns != own {
				threads = append(threads, link)
			}
		}
		return threads
	}
	for deadline := time.Now().Add(waitTimeout); len(dirty()) > 0; runtime.Gosched() { // threads end by themselves
		if time.Now().After(deadline) {
			t.Fatalf("still in another namespace: %v", dirty())
		}
	}
}

// TestARealClientGetsItsLease has the shim's own server on the socket, and all rules in between.
func TestARealClientGetsItsLease(t *testing.T) {
	client, err := exec.LookPath("udhcpc")
	if err != nil {
		env.Missing(t, "needs udhcpc")
	}
	l := newLab(t)
	l.connect(nic0)
	socket := l.dhcpSocket(tapName)
	lease := shimproto.Lease{MAC: shimproto.MAC(guestMAC), Address: guestIP, Router: gatewayIP, MTU: podMTU, Hostname: "web"}
	go func() { _ = dhcp.Serve(socket, lease, "nameserver 10.96.0.10\n", t.Logf) }()
	for _, flag := range []string{"-f", "-B"} { // -B asks for a broadcast
		cmd := exec.CommandContext(l.ctx, client, "-n", "-q", "-t", "5", "-T", "1", "-i", "eth0", "-s", "/bin/true", "-f", flag)
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if _, err := at(l.ctx, l.vm, func() (int, error) { return 0, cmd.Run() }); err != nil || !strings.Contains(said.String(), "lease of 10.0.2.2 obtained from 10.0.2.1") {
			t.Errorf("udhcpc %s: %v\n%s", flag, err, &said)
		}
	}
}
