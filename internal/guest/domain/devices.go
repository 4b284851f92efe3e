package domain

import (
	"slices"

	"libvirt.org/go/libvirtxml"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// The ports on the guest's virtio-serial controller, by name. Their numbers are their places in ports.
const (
	agentPort = "org.qemu.guest_agent.0" // under which a guest agent looks for the host
	guestPort = "dev.berth.guest.0"
	exitPort  = "dev.berth.exit.0"
)

// ports are in the order of their numbers, from 1: 0 is for consoles (virtio 1.2, 5.3). A guest knows a port by its name or
// its number, so one that was there once keeps both, and another comes behind them.
var ports = []string{agentPort, guestPort, exitPort}

// toolsSerial is the serial number of the disk with the guest program. No disk of a spec can have it.
const toolsSerial = "BERTH"

// displays are libvirt's models of the types of displays.
var displays = map[v1alpha1.DisplayType]string{v1alpha1.DisplayVGA: "vga", v1alpha1.DisplayVirtio: "virtio"}

func (g Guest) devices() *libvirtxml.DomainDeviceList {
	l := g.layout()
	devices := &libvirtxml.DomainDeviceList{
		Controllers: append(l.controllers(), g.scsi()...),
		Disks:       g.disks(),
		Serials: []libvirtxml.DomainSerial{{
			Source: new(socket(g.Console)),
			Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: new(uint(0))},
		}},
		// On a socket libvirtd itself would talk with the guest agent, and its parser follows what a guest writes to any depth.
		Channels: []libvirtxml.DomainChannel{
			port(agentPort, libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}}),
			port(guestPort, socket(g.GuestPort)),
			port(exitPort, socket(g.ExitPort)),
		},
		RNGs: []libvirtxml.DomainRNG{{
			Model:   "virtio",
			Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
			Address: l.rng.address(),
		}},
		// The guest hands back memory that it has freed.
		MemBalloon: &libvirtxml.DomainMemBalloon{Model: "virtio", FreePageReporting: "on", Address: l.balloon.address()},
		Panics:     []libvirtxml.DomainPanic{{Model: "isa"}},
	}
	if g.Seed != "" {
		devices.Disks = append(devices.Disks, seed(g.Seed, len(g.Disks), l.seed))
	}
	if g.Tools != "" {
		tools := seed(g.Tools, len(g.Disks)+1, l.tools)
		tools.Serial = toolsSerial
		devices.Disks = append(devices.Disks, tools)
	}
	if g.Display != nil {
		g.Display.add(devices, l)
	}
	if g.NIC != nil {
		devices.Interfaces = []libvirtxml.DomainInterface{g.NIC.device(l.nic)}
	}
	return devices
}

// socket is one that libvirt makes and QEMU listens on, for one peer at a time.
func socket(path string) libvirtxml.DomainChardevSource {
	return libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: path}}
}

// port is a port of the guest's virtio-serial controller.
func port(name string, source libvirtxml.DomainChardevSource) libvirtxml.DomainChannel {
	number := uint(slices.Index(ports, name)) + 1
	return libvirtxml.DomainChannel{
		Source: &source,
		Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: name}},
		Address: &libvirtxml.DomainAddress{VirtioSerial: &libvirtxml.DomainAddressVirtioSerial{
			Controller: new(uint(0)), Bus: new(uint(0)), Port: &number,
		}},
	}
}

// add gives the guest a screen, which all viewers share, and a pointer that is where the viewer's is. A keyboard is in
// every PC.
func (d Display) add(devices *libvirtxml.DomainDeviceList, l layout) {
	devices.Graphics = []libvirtxml.DomainGraphic{{VNC: &libvirtxml.DomainGraphicVNC{
		SharePolicy: "ignore",
		Listeners:   []libvirtxml.DomainGraphicListener{{Socket: &libvirtxml.DomainGraphicListenerSocket{Socket: d.Socket}}},
	}}}
	devices.Videos = []libvirtxml.DomainVideo{{
		Model: libvirtxml.DomainVideoModel{Type: displays[d.Type], Heads: 1, Primary: "yes"}, Address: l.video.address(),
	}}
	devices.Inputs = []libvirtxml.DomainInput{{Type: "tablet", Bus: "virtio", Address: l.tablet.address()}}
}

// seed is a file that the guest only reads. It is a disk, not a CD drive: both firmware and guest would wait for that one.
func seed(path string, i int, at place) libvirtxml.DomainDisk {
	return libvirtxml.DomainDisk{
		Device:       "disk",
		Driver:       &libvirtxml.DomainDiskDriver{Name: "qemu", Type: string(Raw)},
		Source:       file(path),
		BackingStore: chain(nil),
		Target:       &libvirtxml.DomainDiskTarget{Dev: target("vd", i), Bus: "virtio"},
		ReadOnly:     &libvirtxml.DomainDiskReadOnly{},
		Address:      at.address(),
	}
}

func (n NIC) device(at place) libvirtxml.DomainInterface {
	return libvirtxml.DomainInterface{
		MAC:     &libvirtxml.DomainInterfaceMAC{Address: n.MAC.String()},
		Source:  &libvirtxml.DomainInterfaceSource{Ethernet: &libvirtxml.DomainInterfaceSourceEthernet{}},
		Target:  &libvirtxml.DomainInterfaceTarget{Dev: n.Tap},
		Model:   &libvirtxml.DomainInterfaceModel{Type: "virtio"},
		ROM:     &libvirtxml.DomainROM{Enabled: "no"}, // nobody boots from the network
		Address: at.address(),
	}
}

func file(path string) *libvirtxml.DomainDiskSource {
	return &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: path}}
}
