package domain

import (
	"slices"

	"libvirt.org/go/libvirtxml"
)

// agentChannel is the name under which a guest agent looks for the host.
const agentChannel = "org.qemu.guest_agent.0"

func (g Guest) devices() *libvirtxml.DomainDeviceList {
	l := g.layout()
	devices := &libvirtxml.DomainDeviceList{
		Controllers: l.controllers(),
		Serials: []libvirtxml.DomainSerial{{
			Source: &libvirtxml.DomainChardevSource{UNIX: &libvirtxml.DomainChardevSourceUNIX{Mode: "bind", Path: g.Console}},
			Target: &libvirtxml.DomainSerialTarget{Type: "isa-serial", Port: new(uint(0))},
		}},
		// On a socket libvirtd itself would talk with the guest agent, and its parser follows what a guest writes to any depth.
		Channels: []libvirtxml.DomainChannel{{
			Source: &libvirtxml.DomainChardevSource{Pty: &libvirtxml.DomainChardevSourcePty{}},
			Target: &libvirtxml.DomainChannelTarget{VirtIO: &libvirtxml.DomainChannelTargetVirtIO{Name: agentChannel}},
		}},
		RNGs: []libvirtxml.DomainRNG{{
			Model:   "virtio",
			Backend: &libvirtxml.DomainRNGBackend{Random: &libvirtxml.DomainRNGBackendRandom{Device: "/dev/urandom"}},
			Address: l.rng.address(),
		}},
		// The guest hands back memory that it has freed.
		MemBalloon: &libvirtxml.DomainMemBalloon{Model: "virtio", FreePageReporting: "on", Address: l.balloon.address()},
		Panics:     []libvirtxml.DomainPanic{{Model: "isa"}},
	}
	for i, disk := range g.Disks {
		devices.Disks = append(devices.Disks, disk.device(i, l.disk.after(i)))
	}
	if g.Seed != "" {
		devices.Disks = append(devices.Disks, seed(g.Seed, len(g.Disks), l.seed))
	}
	if g.NIC != nil {
		devices.Interfaces = []libvirtxml.DomainInterface{g.NIC.device(l.nic)}
	}
	return devices
}

func (d Disk) device(i int, at place) libvirtxml.DomainDisk {
	return libvirtxml.DomainDisk{
		Device: "disk",
		// A disk that is full or fails halts the guest, which loses nothing and is resumed: told of errors, it would give up.
		Driver: &libvirtxml.DomainDiskDriver{
			Name: "qemu", Type: string(QCOW2), Discard: "unmap", DetectZeros: "unmap", ErrorPolicy: "stop",
		},
		Source:       file(d.Path),
		BackingStore: chain(d.Backing),
		Target:       target(i),
		Serial:       d.Name,
		Boot:         &libvirtxml.DomainDeviceBoot{Order: uint(i) + 1},
		Address:      at.address(),
	}
}

// chain names every file below a disk and ends explicitly: without the end libvirt would look into the last file for more.
func chain(backing []Backing) *libvirtxml.DomainDiskBackingStore {
	store := &libvirtxml.DomainDiskBackingStore{}
	for _, b := range slices.Backward(backing) {
		store = &libvirtxml.DomainDiskBackingStore{
			Format:       &libvirtxml.DomainDiskFormat{Type: string(b.Format)},
			Source:       file(b.Path),
			BackingStore: store,
		}
	}
	return store
}

// seed is a disk, not a CD drive: both firmware and guest would wait for that one.
func seed(path string, i int, at place) libvirtxml.DomainDisk {
	return libvirtxml.DomainDisk{
		Device:       "disk",
		Driver:       &libvirtxml.DomainDiskDriver{Name: "qemu", Type: string(Raw)},
		Source:       file(path),
		BackingStore: chain(nil),
		Target:       target(i),
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

func target(i int) *libvirtxml.DomainDiskTarget {
	return &libvirtxml.DomainDiskTarget{Dev: "vd" + string(rune('a'+i)), Bus: "virtio"} //nolint:gosec // a letter
}
