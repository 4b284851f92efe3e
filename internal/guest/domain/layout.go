package domain

import (
	"slices"

	"libvirt.org/go/libvirtxml"
)

// NewestLayout is the layout of a VM that starts for the first time.
const NewestLayout = 2

// Hardware is what a VM keeps for life, so that its guest finds its devices where they were.
type Hardware struct {
	// Layout is the number of a layout.
	Layout int
	// Machine is QEMU's machine type, with its version.
	Machine string
}

// layout says where a guest's devices are. All that is said of it holds for every guest that was ever started with it: another
// address or another controller before those that are there is another layout.
type layout struct {
	// bridges are the PCI buses beside the root bus, 1 and up.
	bridges []bridge
	// nic and disk are where the first one is; the others are in the slots after it. So the names that udev makes of
	// addresses depend on nothing else that the guest has.
	nic, disk place
	// seed and tools are behind the disks: the first of them is the guest's vda.
	seed, tools place
	// scsi is the controller of SCSI disks, if there are any.
	scsi place
	// These are never plugged.
	serial, rng, balloon, video, tablet place
}

const (
	// growth is how many times its CPU sockets a guest can have, as long as that makes maxGrown vCPUs at most. A guest keeps
	// it for life, as its layout.
	growth = 4
	// maxGrown bounds the vCPUs that are only room to grow: each costs the guest's kernel memory for what it keeps per CPU.
	maxGrown = 64
)

type bridge struct {
	model string
	at    place
}

// place is a slot of a PCI bus. Bus 0 is the root bus: its slot 0 is the host bridge and its slot 31 the chipset's.
type place struct{ bus, slot int }

// The layouts that VMs have, by number. docs/adr/0010 tells why they are so. A number is never used for another one, and 0
// and 1 were.
var layouts = map[int]layout{
	// What can be plugged is behind one bridge: 8 NICs in slots 1 to 8, 16 disks in 9 to 24, the controller of SCSI disks in
	// 25, the tools in 30, and whatever comes later in 26 to 29. On the root bus, the slots from 7 on are free.
	2: {
		bridges: []bridge{{"pcie-root-port", place{0, 6}}, {"pcie-to-pci-bridge", place{1, 0}}},
		nic:     place{2, 1}, disk: place{2, 9}, seed: place{2, 31}, tools: place{2, 30}, scsi: place{2, 25},
		serial: place{0, 3}, rng: place{0, 4}, balloon: place{0, 5}, video: place{0, 1}, tablet: place{0, 2},
	},
}

// HasLayout tells whether the layout is known here.
func (h Hardware) HasLayout() bool {
	_, known := layouts[h.Layout]
	return known
}

func (g Guest) layout() layout { return layouts[g.Hardware.Layout] }

// maxSockets is how many CPU sockets the guest can have without a restart. Each has the cores and threads of the others,
// so the guest sees the topology of its spec now and later.
func (g Guest) maxSockets() int {
	return g.CPU.Sockets * max(1, min(growth, maxGrown/g.CPU.count()))
}

func (l layout) controllers() []libvirtxml.DomainController {
	var all []libvirtxml.DomainController
	for i, b := range l.bridges {
		all = append(all, libvirtxml.DomainController{Type: "pci", Index: new(uint(i) + 1), Model: b.model, Address: b.at.address()})
	}
	return slices.Concat(all, []libvirtxml.DomainController{
		{Type: "usb", Model: "none"},
		{Type: "virtio-serial", Index: new(uint(0)), Address: l.serial.address()},
	})
}

// after is the i-th place after p.
func (p place) after(i int) place { return place{p.bus, p.slot + i} }

func (p place) address() *libvirtxml.DomainAddress {
	return &libvirtxml.DomainAddress{PCI: &libvirtxml.DomainAddressPCI{
		Domain: new(uint(0)), Bus: new(uint(p.bus)), Slot: new(uint(p.slot)), Function: new(uint(0)),
	}}
}
