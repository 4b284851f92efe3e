package podnet

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// rules returns the guarded taps, and how many rules our tables in the pod have.
func (l *lab) rules() (taps []string, count int) {
	l.t.Helper()
	l.in(l.pod, func(*netlink.Handle) error {
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		chains, err := conn.ListChains()
		for _, c := range chains {
			rules, e := conn.GetRules(c.Table, c)
			err = errors.Join(err, e)
			count += len(rules)
		}
		if err == nil {
			taps, err = tapsWithIngressRules(conn)
		}
		return err
	})
	slices.Sort(taps)
	return taps, count
}

// isOff tells whether the NIC's tap is down: nothing that it sends arrives anywhere.
func (n *nic) isOff() bool {
	_, err := n.tap.Write(frame(n.MAC, unix.ETH_P_ARP, arpReply(n.MAC, n.Address.Addr(), n.Gateway)))
	return errors.Is(err, unix.EIO)
}

func TestSeveralInterfaces(t *testing.T) {
	l := newLab(t)
	second := l.plug(nic1)
	l.serve(l.vm, ":80")
	l.serve(second.vm, ":81")
	l.serve(nil, ":8080")
	expect := func(from *os.File, to, want string) {
		t.Helper()
		if seen, err := l.calls(from, to); seen != want || err != nil {
			t.Errorf("the server at %s has seen %q, %v; want %s", to, seen, err, want)
		}
	}

	l.connect(nic0)
	taps, alone := l.rules()
	if !slices.Equal(taps, []string{nic0.Tap}) {
		t.Errorf("guarded are %v, want the first alone", taps)
	}
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
	goesOn := func() {
		t.Helper()
		_, _ = fmt.Fprintln(conn, "still here")
		if line, err := r.ReadString('\n'); line != "still here\n" || err != nil {
			t.Fatalf("the first's connection gave %q, %v", line, err)
		}
	}

	l.connect(nic0, nic1)
	goesOn()
	expect(nil, "10.244.0.5:80", "10.244.0.1")    // the first serves the pod's address
	expect(l.pod, "127.0.0.1:80", "10.0.2.1")     // and port-forward
	expect(l.vm, "10.244.0.1:8080", "10.244.0.5") // each calls as the pod
	expect(second.vm, "10.244.0.1:8080", "10.244.0.5")
	expect(l.pod, "10.0.3.2:81", "10.0.3.1")
	l.neitherLies(second)

	l.connect(nic0)
	goesOn()
	if taps, count := l.rules(); !slices.Equal(taps, []string{nic0.Tap}) || count != alone || !second.isOff() {
		t.Errorf("with the second removed, guarded are %v by %d rules, want the first's %d; the second is off: %v", taps, count, alone, second.isOff())
	}

	l.connect(nic0, nic1)
	goesOn()
	expect(second.vm, "10.244.0.1:8080", "10.244.0.5")

	l.connect(nic1)
	expect(nil, "10.244.0.5:81", "10.244.0.1")
	if taps, count := l.rules(); !slices.Equal(taps, []string{nic1.Tap}) || count != alone || !l.isOff() {
		t.Errorf("with the first removed, guarded are %v by %d rules, want the second's %d; the first is off: %v", taps, count, alone, l.isOff())
	}

	second.kill()
	l.connect(nic0) // the second's tap is gone, with its guard or without
	expect(nil, "10.244.0.5:80", "10.244.0.1")

	l.connect()
	if _, err := l.dial(nil, "10.244.0.5:80", waitTimeout); !errors.Is(err, unix.ECONNREFUSED) || !l.isOff() {
		t.Errorf("without an interface the pod gives %v, want refused; the first is off: %v", err, l.isOff())
	}
}

// neitherLies lets each of two NICs lie in the other's name, and reach for what listens in the pod.
func (l *lab) neitherLies(second *nic) {
	l.t.Helper()
	outside, pod := l.listen(nil, "10.244.0.1:5353"), l.listen(l.pod, "0.0.0.0:5353")
	public := netip.MustParseAddrPort("10.244.0.1:5353")
	for _, pair := range [][2]*nic{{l.nic, second}, {second, l.nic}} {
		n, other := pair[0], pair[1]
		me, them := netip.AddrPortFrom(n.Address.Addr(), 7), netip.AddrPortFrom(other.Address.Addr(), 7)
		ip := func(mac net.HardwareAddr, from, to netip.AddrPort, text string) {
			n.send(frame(mac, unix.ETH_P_IP, datagram(from, to, text)))
		}
		ip(other.MAC, them, public, "in the other's name")
		ip(n.MAC, them, public, "under the other's address")
		ip(other.MAC, me, public, "under the other's hardware address")
		for _, to := range []netip.Addr{n.Gateway, other.Gateway, netip.MustParseAddr("127.0.0.1")} {
			ip(n.MAC, me, netip.AddrPortFrom(to, 5353), "to what listens in the pod")
		}
		ip(n.MAC, me, public, "truth")
		buf := make([]byte, 64)
		if read, _, err := outside.ReadFromUDP(buf); err != nil || string(buf[:read]) != "truth" {
			l.t.Errorf("outside read %q of %s, %v", buf[:read], n.Tap, err)
		}
		if got := l.arrived(pod); got != "" { // what the pod got, it got before
			l.t.Errorf("the pod read %q", got)
		}
	}
}

func TestLocalhostOfThePod(t *testing.T) {
	l := newLab(t)
	l.configure(Config{Interfaces: []Interface{nic0}, ReservedPorts: []uint16{5900, 5901}})
	l.serve(l.vm, ":22")
	l.serve(l.vm, ":5900")
	l.serve(l.pod, "127.0.0.1:22")
	l.serve(l.pod, "127.0.0.1:5900")
	l.serve(l.pod, "127.0.0.1:5901")
	l.serve(l.pod, "127.0.0.2:22")
	for name, c := range map[string]struct {
		from     *os.File
		to, seen string
	}{
		"a reserved port is the pod's":                      {l.pod, "127.0.0.1:5900", "127.0.0.1"},
		"so is another":                                     {l.pod, "127.0.0.1:5901", "127.0.0.1"},
		"port-forward reaches any other port of the guest":  {l.pod, "127.0.0.1:22", "10.0.2.1"},
		"from outside, a reserved port is the guest's":      {nil, "10.244.0.5:5900", "10.244.0.1"},
		"and from the pod, at the pod's address":            {l.pod, "10.244.0.5:5900", "10.244.0.5"},
		"all other addresses of the loopback are the pod's": {l.pod, "127.0.0.2:22", "127.0.0.1"},
	} {
		t.Run(name, func(t *testing.T) {
			if seen, err := l.calls(c.from, c.to); seen != c.seen || err != nil {
				t.Errorf("the server at %s has seen %q, %v; want %s", c.to, seen, err, c.seen)
			}
		})
	}
	t.Run("datagrams stay in the pod", func(t *testing.T) {
		guest, pod, from := l.listen(l.vm, "0.0.0.0:53"), l.listen(l.pod, "127.0.0.1:53"), l.listen(l.pod, "127.0.0.1:0")
		if _, err := from.WriteTo([]byte("ask"), pod.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		// One for the guest goes the same way, so it comes after one that was sent astray.
		if _, err := from.WriteTo([]byte("for the guest"), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.0.2.2:53"))); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 64)
		if n, _, err := guest.ReadFromUDP(buf); err != nil || string(buf[:n]) != "for the guest" {
			t.Fatalf("the guest read %q, %v", buf[:n], err)
		}
		if n, _, err := pod.ReadFromUDP(buf); err != nil || string(buf[:n]) != "ask" {
			t.Errorf("the pod read %q, %v", buf[:n], err)
		}
	})
	t.Run("a port that is reserved no longer is the guest's", func(t *testing.T) {
		l.connect(nic0)
		if seen, err := l.calls(l.pod, "127.0.0.1:5900"); seen != "10.0.2.1" || err != nil {
			t.Errorf("the server has seen %q, %v; want the guest's to see 10.0.2.1", seen, err)
		}
	})
}
