package domain

import (
	"fmt"
	"testing"

	"libvirt.org/go/libvirtxml"
)

// TestLayoutsHaveRoom fills every layout with all that a guest can have, and more NICs than it can have today.
func TestLayoutsHaveRoom(t *testing.T) {
	for n, l := range layouts {
		nics := 8
		if n == 0 {
			nics = 1 // all that it has room for
		}
		taken := map[place]string{{0, 0}: "the host bridge", {0, 31}: "the chipset"}
		put := func(what string, p place) {
			if p.slot > 31 || p.bus > len(l.bridges) || taken[p] != "" {
				t.Errorf("layout %d: %s at %v, beside %q", n, what, p, taken[p])
			}
			taken[p] = what
		}
		for i, b := range l.bridges {
			put(fmt.Sprintf("bridge %d", i+1), b.at)
		}
		put("serial", l.serial)
		put("rng", l.rng)
		put("balloon", l.balloon)
		put("video", l.video)
		put("tablet", l.tablet)
		put("scsi", l.scsi)
		put("seed", l.seed)
		put("tools", l.tools)
		for i := range nics {
			put(fmt.Sprintf("NIC %d", i), l.nic.after(i))
		}
		for i := range MaxDisks {
			put(fmt.Sprintf("disk %d", i), l.disk.after(i))
		}
	}
}

func TestRoomForVCPUs(t *testing.T) {
	for name, tc := range map[string]struct {
		layout  int
		cpu     CPU
		current uint
		most    uint
		sockets int
	}{
		"layout 0 has none":                     {0, CPU{Sockets: 1, Cores: 2, Threads: 1}, 0, 2, 1},
		"one may become four":                   {1, CPU{Sockets: 1, Cores: 1, Threads: 1}, 1, 4, 4},
		"by whole sockets":                      {1, CPU{Sockets: 2, Cores: 3, Threads: 2}, 12, 48, 8},
		"as many as fit into the bound":         {1, CPU{Sockets: 1, Cores: 24, Threads: 1}, 24, 48, 2},
		"those of a large guest are all there":  {1, CPU{Sockets: 2, Cores: 32, Threads: 1}, 0, 64, 2},
		"those of a larger guest are all there": {1, CPU{Sockets: 4, Cores: 64, Threads: 2}, 0, 512, 4},
	} {
		t.Run(name, func(t *testing.T) {
			doc, err := XML(edited(func(g *Guest) {
				g.Hardware.Layout = tc.layout
				g.CPU = tc.cpu
			}))
			if err != nil {
				t.Fatal(err)
			}
			var d libvirtxml.Domain
			if err := d.Unmarshal(doc); err != nil {
				t.Fatal(err)
			}
			if d.VCPU.Current != tc.current || d.VCPU.Value != tc.most || d.CPU.Topology.Sockets != tc.sockets {
				t.Errorf("%d of %d vCPUs in %d sockets, want %d of %d in %d",
					d.VCPU.Current, d.VCPU.Value, d.CPU.Topology.Sockets, tc.current, tc.most, tc.sockets)
			}
		})
	}
}

// TestMACs: what older layouts gave is never changed. The newest gives what the name of a network has no part in: whoever
// chooses names would meet another guest's after 2⁴⁰ of them, without a VM.
func TestMACs(t *testing.T) {
	const vm = "0b9d4f6e-3c1a-4a55-9f0e-6a1c2f3d4e5f"
	for layout, want := range []string{"02:01:d9:a1:67:12", "02:01:d9:a1:67:12", "42:63:97:38:ee:46"} {
		if got := (Hardware{Layout: layout}).MAC(vm, "default", 0).String(); got != want {
			t.Errorf("layout %d: %s, want %s", layout, got, want)
		}
	}
	newest := Hardware{Layout: NewestLayout}
	if a, b := newest.MAC(vm, "default", 0), newest.MAC(vm, "another", 0); a.String() != b.String() {
		t.Errorf("the name of the network chooses between %s and %s", a, b)
	}
	if a, b := newest.MAC(vm, "default", 0), newest.MAC(vm, "default", 1); a.String() == b.String() {
		t.Errorf("two NICs share %s", a)
	}
}
