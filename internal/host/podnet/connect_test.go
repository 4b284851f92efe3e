package podnet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

func TestGuestAndPodAreOne(t *testing.T) {
	l := newLab(t)
	pod := l.connect(nic0)
	if pod.Name != "eth0" || pod.Address != podIP || pod.MTU != podMTU {
		t.Errorf("the pod's interface is %+v", pod)
	}
	l.serve(l.vm, ":80")
	l.serve(l.vm, ":40000")
	l.serve(nil, ":8080")
	for name, c := range map[string]struct {
		from     *os.File
		to, seen string
	}{
		"who calls the pod reaches the guest, which sees the caller": {nil, "10.244.0.5:80", "10.244.0.1"},
		"on any port":                                   {nil, "10.244.0.5:40000", "10.244.0.1"},
		"who the guest calls sees the pod":              {l.vm, "10.244.0.1:8080", "10.244.0.5"},
		"port-forward, from the pod's localhost":        {l.pod, "127.0.0.1:80", "10.0.2.1"},
		"the shim, from the pod to the pod's address":   {l.pod, "10.244.0.5:80", "10.244.0.5"},
		"the shim, from the pod to the private address": {l.pod, "10.0.2.2:80", "10.0.2.1"},
		"the guest calls its own pod":                   {l.vm, "10.244.0.5:80", "10.0.2.1"},
	} {
		t.Run(name, func(t *testing.T) {
			if seen, err := l.calls(c.from, c.to); seen != c.seen || err != nil {
				t.Errorf("the server at %s has seen %q, %v; want %s", c.to, seen, err, c.seen)
			}
		})
	}
}

func TestDatagramsGoBothWays(t *testing.T) {
	l := newLab(t)
	l.connect(nic0)
	guest, outside := l.listen(l.vm, "0.0.0.0:53"), l.listen(nil, "10.244.0.1:5353")
	from, buf := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.244.0.5:53")), make([]byte, 64)
	if _, err := outside.WriteToUDP([]byte("ask"), from); err != nil {
		t.Fatal(err)
	}
	n, asker, err := guest.ReadFromUDP(buf)
	if err != nil || string(buf[:n]) != "ask" || asker.String() != "10.244.0.1:5353" {
		t.Fatalf("the guest read %q from %s, %v", buf[:n], asker, err)
	}
	if _, err := guest.WriteToUDP([]byte("answer"), asker); err != nil {
		t.Fatal(err)
	}
	n, answerer, err := outside.ReadFromUDP(buf)
	if err != nil || string(buf[:n]) != "answer" || answerer.String() != from.String() {
		t.Errorf("outside read %q from %s, %v; want it from the pod", buf[:n], answerer, err)
	}
}

func TestEchoes(t *testing.T) {
	l := newLab(t)
	l.connect(nic0)
	for name, c := range map[string]struct {
		from *os.File
		to   string
	}{
		"outside pings the pod":       {nil, "10.244.0.5"},
		"the guest pings outside":     {l.vm, "10.244.0.1"},
		"the guest pings its gateway": {l.vm, "10.0.2.1"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, err := at(l.ctx, c.from, func() (*net.IPConn, error) {
				return net.DialIP("ip4:icmp", nil, &net.IPAddr{IP: net.ParseIP(c.to)})
			})
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(waitTimeout))
			echo := []byte{8, 0, 0xf7, 0xfd, 0, 1, 0, 1}
			if _, err := conn.Write(echo); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1500)
			for { // one's own request comes back first where both ends are in one namespace
				n, _, err := conn.ReadFromIP(buf)
				if err != nil {
					t.Fatalf("no answer from %s: %v", c.to, err)
				}
				if n >= 8 && buf[0] == 0 {
					return
				}
			}
		})
	}
}

func TestSmallerLinksOnTheWay(t *testing.T) {
	l := newLab(t)
	l.connect(nic0)
	beyond := newNamespace(t)
	l.veth("vethfar", netip.MustParsePrefix("192.0.2.1/24"), beyond, "eth0", netip.MustParsePrefix(far+"/24"), 1000)
	l.in(beyond, func(h *netlink.Handle) error { return h.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 1)}) })
	l.in(nil, func(h *netlink.Handle) error { // the host is a router
		for _, name := range []string{"vethpod", "vethfar"} {
			link, err := h.LinkByName(name)
			if err == nil {
				err = setIPv4Conf(link.Attrs().Index, confForwarding)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	l.in(beyond, func(h *netlink.Handle) error { // and drops what is too long, so the far side must not help by its MSS
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.LinkSetMTU(link, 1500)
	})
	listener, err := at(l.ctx, beyond, func() (net.Listener, error) { return net.Listen("tcp4", ":80") })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	received := make(chan []byte, 1)
	go func() { // it says nothing itself: of what is too long, its own link would drop a part without a word
		defer close(received)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		got, _ := io.ReadAll(conn)
		received <- got
	}()
	conn, err := l.dial(l.vm, far+":80", waitTimeout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	sent := bytes.Repeat([]byte("berth"), 20000)
	_ = conn.SetDeadline(time.Now().Add(waitTimeout))
	_, err = conn.Write(sent)
	if err := errors.Join(err, conn.(*net.TCPConn).CloseWrite()); err != nil {
		t.Fatal(err)
	}
	select {
	case got := <-received:
		if !bytes.Equal(got, sent) {
			t.Errorf("%d bytes came through of %d", len(got), len(sent))
		}
	case <-time.After(waitTimeout):
		t.Error("what was sent does not come through")
	}
}

func TestGuestIsKeptToItself(t *testing.T) {
	l := newLab(t)
	l.connect(nic0)
	l.serve(l.vm, ":80")
	l.serve(l.pod, ":8080")
	l.in(nil, func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{
			Dst: &net.IPNet{IP: guestIP.Masked().Addr().AsSlice(), Mask: net.CIDRMask(24, 32)}, Gw: podIP.Addr().AsSlice(),
		})
	})
	for name, c := range map[string]struct {
		from *os.File
		to   string
	}{
		"what listens in the pod, at the gateway": {l.vm, "10.0.2.1:8080"},
		"its private address, from outside":       {nil, "10.0.2.2:80"},
	} {
		t.Run(name, func(t *testing.T) {
			if conn, err := l.dial(c.from, c.to, quietPeriod); err == nil {
				_ = conn.Close()
				t.Errorf("%s answers", c.to)
			}
		})
	}
}

func TestConnectingAgain(t *testing.T) {
	l := newLab(t)
	l.in(l.pod, func(*netlink.Handle) error { // somebody else's table
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		conn.AddTable(&nftables.Table{Name: "mesh", Family: nftables.TableFamilyIPv4})
		return conn.Flush()
	})
	l.connect(nic0)
	l.serve(l.vm, ":80")
	conn, err := l.dial(nil, "10.244.0.5:80", waitTimeout)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(waitTimeout))
	r := bufio.NewReader(conn)
	if _, err := r.ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		l.connect(nic0)
		line := fmt.Sprintf("line %d\n", i)
		if _, err := conn.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); got != line || err != nil {
			t.Fatalf("read %q, %v; want %q", got, err, line)
		}
	}
	l.in(l.pod, func(*netlink.Handle) error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		tables, err := c.ListTables()
		if len(tables) != 3 {
			t.Errorf("the pod has %d tables, want ours of two families and the other", len(tables))
		}
		return err
	})
}

func TestRulesOfTheVersionBefore(t *testing.T) {
	l := newLab(t)
	l.connect(nic0)
	l.in(l.pod, func(*netlink.Handle) error { // its one guard was named otherwise
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		had, err := conn.ListTables()
		if err != nil {
			return err
		}
		ingress := emptyTable(conn, had, nftables.TableFamilyNetdev)
		conn.AddChain(&nftables.Chain{
			Name: "ingress", Table: ingress.table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookIngress, Priority: nftables.ChainPriorityFilter, Policy: new(drop), Device: nic0.Tap,
		})
		return conn.Flush()
	})
	l.connect(nic0)
	if taps, _ := l.rules(); !slices.Equal(taps, []string{nic0.Tap}) {
		t.Errorf("guarded are %v, want %s alone", taps, nic0.Tap)
	}
	l.serve(l.vm, ":80")
	if seen, err := l.calls(nil, "10.244.0.5:80"); seen != "10.244.0.1" || err != nil {
		t.Errorf("the guest has seen %q, %v", seen, err)
	}
}

func TestAnAgentKilledWhileConnecting(t *testing.T) {
	l := newLab(t)
	second := l.plug(nic1)
	l.serve(l.vm, ":80")
	l.serve(nil, ":8080")
	for delay := range 12 {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=connect %d", helper, 2-delay%2)) // both, or one is removed
		cmd.ExtraFiles = []*os.File{l.pod}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(time.Duration(delay)*2*time.Millisecond, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
	}
	l.connect(nic0, nic1)
	if seen, err := l.calls(nil, "10.244.0.5:80"); seen != "10.244.0.1" || err != nil {
		t.Errorf("the guest has seen %q, %v", seen, err)
	}
	if seen, err := l.calls(second.vm, "10.244.0.1:8080"); seen != "10.244.0.5" || err != nil {
		t.Errorf("whom the second interface calls has seen %q, %v", seen, err)
	}
}

func TestTheNextRunOfTheGuest(t *testing.T) {
	l := newLab(t)
	l.connect(nic0)
	l.serve(l.vm, ":80")
	if _, err := l.calls(nil, "10.244.0.5:80"); err != nil {
		t.Fatal(err)
	}
	l.kill()
	if _, err := (Pods{}).Connect(l.ctx, l.pod, Config{Interfaces: []Interface{nic0}}); fault.ReasonOf(err) != v1alpha1.ReasonNetworkFailed || fault.ClassOf(err) != fault.Transient {
		t.Errorf("Connect() without a tap = %v", err)
	}
	if _, err := l.dial(nil, "10.244.0.5:80", waitTimeout); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("without a guest, calling it from outside gives %v, want unreachable", err)
	}
	if _, err := l.dial(l.pod, "127.0.0.1:80", quietPeriod); err == nil {
		t.Error("without a guest, somebody answers in its place")
	}
	l.boot()
	l.connect(nic0)
	if seen, err := l.calls(nil, "10.244.0.5:80"); seen != "10.244.0.1" || err != nil {
		t.Errorf("the guest has seen %q, %v", seen, err)
	}
}

func TestConnectRefuses(t *testing.T) {
	l := newLab(t)
	host, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	bare := newNamespace(t)
	with := func(change func(*Interface)) []Interface {
		n := nic0
		change(&n)
		return []Interface{n}
	}
	for name, c := range map[string]struct {
		ns         *os.File
		interfaces []Interface
		class      fault.Class
	}{
		"the host's own namespace":     {host, []Interface{nic0}, fault.Transient},
		"an interface that is no tap":  {l.pod, with(func(n *Interface) { n.Tap = "vethpod" }), fault.Transient},
		"a pod without IPv4":           {bare, []Interface{nic0}, fault.User},
		"a tap that the host has none": {l.pod, with(func(n *Interface) { n.Tap = "btnone" }), fault.Transient},
		"a guest's subnet that the pod is in": {l.pod, with(func(n *Interface) {
			n.Address, n.Gateway = netip.MustParsePrefix("10.244.0.9/24"), netip.MustParseAddr("10.244.0.8")
		}), fault.User},
		"a guest that is its own gateway (bug)": {l.pod, with(func(n *Interface) { n.Gateway = guestIP.Addr() }), fault.Internal},
		"two interfaces in one subnet (bug)":    {l.pod, append(with(func(n *Interface) { n.Tap = "btnone" }), nic0), fault.Internal},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := (Pods{}).Connect(l.ctx, c.ns, Config{Interfaces: c.interfaces})
			if err == nil || fault.ClassOf(err) != c.class {
				t.Errorf("Connect() = %v, want an error of class %d", err, c.class)
			}
		})
	}
	ctx, cancel := context.WithCancel(l.ctx)
	cancel()
	if _, err := (Pods{}).FindPodInterface(ctx, l.pod); err != nil && !errors.Is(err, context.Canceled) {
		t.Errorf("FindPodInterface() after the deadline = %v", err)
	}
}
