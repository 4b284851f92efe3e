package podnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/host/namespace"
	"github.com/berth-dev/berth/test/env"
)

// The tests' own namespace stands for the host's, so that the machine's is left alone.
const helper = "BERTH_TEST_PODNET_HELPER"

func TestMain(m *testing.M) {
	if count, ok := strings.CutPrefix(os.Getenv(helper), "connect "); ok {
		n, _ := strconv.Atoi(count)
		c := Config{Interfaces: []Interface{nic0, nic1}[:n]}
		if _, err := (Pods{}).Connect(context.Background(), os.NewFile(3, "netns"), c); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	if os.Getenv(helper) == "" && os.Getuid() == 0 {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), helper+"=host")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
		if err := cmd.Run(); err != nil {
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

const (
	tapName = "bttest0"
	podMTU  = 1420
	far     = "192.0.2.9" // behind a link with a smaller MTU
)

var (
	podIP     = netip.MustParsePrefix("10.244.0.5/24")
	hostIP    = netip.MustParsePrefix("10.244.0.1/24")
	guestIP   = netip.MustParsePrefix("10.0.2.2/24")
	gatewayIP = netip.MustParseAddr("10.0.2.1")
	guestMAC  = net.HardwareAddr{2, 0, 0, 0, 0, 9}

	nic0 = Interface{Tap: tapName, MAC: guestMAC, Address: guestIP, Gateway: gatewayIP}
	nic1 = Interface{
		Tap: "bttest1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, 10},
		Address: netip.MustParsePrefix("10.0.3.2/24"), Gateway: netip.MustParseAddr("10.0.3.1"),
	}
)

// waitTimeout bounds what must happen; quietPeriod is how long we look for what must not.
const (
	waitTimeout = 30 * time.Second
	quietPeriod = 200 * time.Millisecond
)

// lab is a pod with its CNI's interface on a host, and a guest with one NIC.
type lab struct {
	t   *testing.T
	pod *os.File
	ctx context.Context
	*nic
}

// nic is a guest's network interface: a network stack of its own behind a tap.
type nic struct {
	Interface

	lab             *lab
	vm              *os.File
	tap             *os.File // what QEMU holds
	guestSide       *os.File
	stopped, closed chan struct{}
}

// newLab builds a lab whose host is that of this whole process.
func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getenv(helper) != "host" {
		env.Missing(t, "needs root")
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	l := &lab{t: t, ctx: ctx, pod: newNamespace(t)}
	l.veth("vethpod", hostIP, l.pod, "eth0", podIP, podMTU)
	l.in(l.pod, func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Gw: hostIP.Addr().AsSlice()})
	})
	l.nic = l.plug(nic0)
	return l
}

// plug gives the guest a NIC.
func (l *lab) plug(i Interface) *nic {
	l.t.Helper()
	n := &nic{Interface: i, lab: l, vm: newNamespace(l.t)}
	n.guestSide = l.openTap(n.vm, "eth0")
	l.in(n.vm, func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return errors.Join(
			h.LinkSetHardwareAddr(link, i.MAC),
			h.LinkSetMTU(link, podMTU), // as DHCP tells it
			h.AddrAdd(link, address(i.Address)),
			h.LinkSetUp(link),
			h.RouteAdd(&netlink.Route{Gw: i.Gateway.AsSlice()}),
		)
	})
	n.boot()
	return n
}

// boot makes a tap on the host, as libvirtd does, and connects the guest to it, as QEMU does.
func (n *nic) boot() {
	n.lab.t.Helper()
	n.tap = n.lab.openTap(nil, n.Tap)
	n.lab.in(nil, func(h *netlink.Handle) error { // the same for each run, as libvirt does
		link, err := h.LinkByName(n.Tap)
		if err != nil {
			return err
		}
		return h.LinkSetHardwareAddr(link, n.gatewayMAC())
	})
	n.stopped, n.closed = make(chan struct{}), make(chan struct{})
	go func() { pump(n.tap, n.guestSide); close(n.stopped) }()
	go func() { pump(n.guestSide, n.tap); close(n.closed) }()
	n.lab.t.Cleanup(n.kill)
}

func (n *nic) gatewayMAC() net.HardwareAddr { return append(net.HardwareAddr{0xfe}, n.MAC[1:]...) }

// kill ends QEMU: the tap vanishes. The guest's stack stays for the next one.
func (n *nic) kill() {
	_ = n.tap.Close()
	<-n.stopped
	_ = n.guestSide.SetReadDeadline(time.Now())
	<-n.closed
	_ = n.guestSide.SetReadDeadline(time.Time{})
}

// send writes a frame to the gateway, as the guest's NIC would.
func (n *nic) send(f []byte) {
	n.lab.t.Helper()
	copy(f, n.gatewayMAC())
	if _, err := n.tap.Write(f); err != nil {
		n.lab.t.Fatal(err)
	}
}

func pump(from, to *os.File) {
	frame := make([]byte, 65536)
	for {
		n, err := from.Read(frame)
		if err != nil {
			return
		}
		if _, err := to.Write(frame[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// connect makes these the guest's interfaces, and no others.
func (l *lab) connect(interfaces ...Interface) PodInterface {
	l.t.Helper()
	return l.configure(Config{Interfaces: interfaces})
}

func (l *lab) configure(c Config) PodInterface {
	l.t.Helper()
	pod, err := (Pods{}).Connect(l.ctx, l.pod, c)
	if err != nil {
		l.t.Fatal(err)
	}
	return pod
}

// veth connects the host with another namespace.
func (l *lab) veth(here string, hereIP netip.Prefix, ns *os.File, there string, thereIP netip.Prefix, mtu int) {
	l.t.Helper()
	h, err := newHandle()
	if err != nil {
		l.t.Fatal(err)
	}
	defer h.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = here, mtu
	link := &netlink.Veth{
		LinkAttrs: attrs, PeerName: there, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(ns.Fd()),
	}
	if err := errors.Join(h.LinkAdd(link), h.AddrAdd(link, address(hereIP)), h.LinkSetUp(link)); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		h, err := newHandle()
		if err != nil {
			l.t.Fatal(err)
		}
		defer h.Close()
		_ = h.LinkDel(link)
	})
	l.in(ns, func(h *netlink.Handle) error {
		link, err := h.LinkByName(there)
		if err != nil {
			return err
		}
		return errors.Join(h.AddrAdd(link, address(thereIP)), h.LinkSetUp(link))
	})
}

func address(p netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}}
}

// in runs work in a namespace; nil is the host's.
func (l *lab) in(ns *os.File, work func(*netlink.Handle) error) {
	l.t.Helper()
	if _, err := at(l.ctx, ns, func() (int, error) {
		h, err := newHandle()
		if err != nil {
			return 0, err
		}
		defer h.Close()
		return 0, work(h)
	}); err != nil {
		l.t.Fatal(err)
	}
}

func at[T any](ctx context.Context, ns *os.File, work func() (T, error)) (T, error) {
	if ns == nil {
		return work()
	}
	return namespace.In(ctx, ns, unix.CLONE_NEWNET, work)
}

// newNamespace makes a network namespace that lives as long as its descriptor.
func newNamespace(t *testing.T) *os.File {
	t.Helper()
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	ns, err := namespace.In(t.Context(), own, unix.CLONE_NEWNET, func() (*os.File, error) { // on a thread of its own
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return nil, err
		}
		h, err := newHandle()
		if err != nil {
			return nil, err
		}
		defer h.Close()
		lo, err := h.LinkByName("lo")
		if err == nil {
			err = h.LinkSetUp(lo)
		}
		if err != nil {
			return nil, err
		}
		return os.Open("/proc/thread-self/ns/net")
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

func (l *lab) openTap(ns *os.File, name string) *os.File {
	l.t.Helper()
	tap, err := at(l.ctx, ns, func() (*os.File, error) {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return nil, err
		}
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); err != nil {
			_ = unix.Close(fd)
			return nil, fmt.Errorf("making tap %s: %w", name, err)
		}
		return os.NewFile(uintptr(fd), name), nil
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = tap.Close() })
	return tap
}

// serve answers each connection in a namespace with the caller's address and what the caller sends.
func (l *lab) serve(ns *os.File, where string) {
	l.t.Helper()
	listener, err := at(l.ctx, ns, func() (net.Listener, error) { return net.Listen("tcp4", where) })
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				ip, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
				_, _ = fmt.Fprintln(conn, ip)
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
}

func (l *lab) dial(ns *os.File, where string, within time.Duration) (net.Conn, error) {
	return at(l.ctx, ns, func() (net.Conn, error) { return net.DialTimeout("tcp4", where, within) })
}

// calls returns the address that a server sees when it is called.
func (l *lab) calls(ns *os.File, where string) (string, error) {
	conn, err := l.dial(ns, where, waitTimeout)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(waitTimeout))
	var seen string
	_, err = fmt.Fscanln(conn, &seen)
	return seen, err
}

// listen opens a UDP socket in a namespace.
func (l *lab) listen(ns *os.File, where string) *net.UDPConn {
	l.t.Helper()
	addr := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(where))
	conn, err := at(l.ctx, ns, func() (*net.UDPConn, error) { return net.ListenUDP("udp4", addr) })
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(waitTimeout))
	return conn
}
