package domain

import (
	"fmt"
	"testing"

	"libvirt.org/go/libvirtxml"
)

// TestLayoutsHaveRoom fills every layout with all that a guest can have, and more NICs than it can have today.
func TestLayoutsHaveRoom(t *testing.T) {
	for n, l := range layouts {
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
		for i := range 8 {
			put(fmt.Sprintf("NIC %d", i), l.nic.after(i))
		}
		for i := range MaxDisks {
			put(fmt.Sprintf("disk %d", i), l.disk.after(i))
		}
	}
}

func TestRoomForVCPUs(t *testing.T) {
	for name, tc := range map[string]struct {
		cpu     CPU
		current uint
		most    uint
		sockets int
	}{
		"one may become four":                   {CPU{Sockets: 1, Cores: 1, Threads: 1}, 1, 4, 4},
		"by whole sockets":                      {CPU{Sockets: 2, Cores: 3, Threads: 2}, 12, 48, 8},
		"as many as fit into the bound":         {CPU{Sockets: 1, Cores: 24, Threads: 1}, 24, 48, 2},
		"those of a large guest are all there":  {CPU{Sockets: 2, Cores: 32, Threads: 1}, 0, 64, 2},
		"those of a larger guest are all there": {CPU{Sockets: 4, Cores: 64, Threads: 2}, 0, 512, 4},
	} {
		t.Run(name, func(t *testing.T) {
			doc, err := XML(edited(func(g *Guest) { g.CPU = tc.cpu }))
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

// TestLayoutNumbers: those that are gone never come back as another one.
func TestLayoutNumbers(t *testing.T) {
	for n, want := range map[int]bool{-1: false, 0: false, 1: false, NewestLayout: true, NewestLayout + 1: false} {
		if got := (Hardware{Layout: n}).HasLayout(); got != want {
			t.Errorf("layout %d is there: %t, want %t", n, got, want)
		}
	}
}
