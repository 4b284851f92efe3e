package podnet

import (
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestGuestsWithOneMAC: a guest's hardware address is seen in its own pod alone, so that of another may be the same.
func TestGuestsWithOneMAC(t *testing.T) {
	one := newLab(t)
	one.connect(nic0)
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0); err != nil { // of this test's host
		t.Fatal(err)
	}
	other := &lab{t: t, ctx: one.ctx, pod: newNamespace(t)}
	otherHost := netip.MustParsePrefix("10.244.1.1/24")
	other.veth("vethother", otherHost, other.pod, "eth0", netip.MustParsePrefix("10.244.1.5/24"), podMTU)
	other.in(other.pod, func(h *netlink.Handle) error {
		return h.RouteAdd(&netlink.Route{Gw: otherHost.Addr().AsSlice()})
	})
	other.nic = other.plug(nic0)
	other.connect(nic0)
	one.serve(one.vm, ":80")
	other.serve(other.vm, ":80")
	for name, c := range map[string]struct {
		from     *os.File
		to, seen string
	}{
		"one calls the other": {one.vm, "10.244.1.5:80", "10.244.0.5"},
		"the other calls it":  {other.vm, "10.244.0.5:80", "10.244.1.5"},
		"its host calls one":  {nil, "10.244.0.5:80", "10.244.0.1"},
		"and calls the other": {nil, "10.244.1.5:80", "10.244.1.1"},
	} {
		t.Run(name, func(t *testing.T) {
			if seen, err := one.calls(c.from, c.to); seen != c.seen || err != nil {
				t.Errorf("the server at %s has seen %q, %v; want %s", c.to, seen, err, c.seen)
			}
		})
	}
	one.in(nil, func(h *netlink.Handle) error {
		neighbours, err := h.NeighList(0, netlink.FAMILY_V4)
		for _, n := range neighbours {
			if n.HardwareAddr.String() == guestMAC.String() {
				t.Errorf("the host has learned the guest's hardware address for %s", n.IP)
			}
		}
		if len(neighbours) < 2 {
			t.Errorf("the host knows %d neighbours, and has called two pods", len(neighbours))
		}
		return err
	})
}
