package domain

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// userAlias begins the aliases that libvirt lets others choose.
const userAlias = "ua-"

// maxSATA is how many ports q35's own controller has.
const maxSATA = 6

// buses are what libvirt calls the buses of disks, and how it begins their targets' names.
var buses = map[v1alpha1.DiskBus]struct{ name, target string }{
	v1alpha1.BusVirtio: {"virtio", "vd"}, v1alpha1.BusSCSI: {"scsi", "sd"}, v1alpha1.BusSATA: {"sata", "sd"},
}

// Spot is where a disk is in a guest, or can be plugged.
type Spot struct {
	bus    v1alpha1.DiskBus
	target string // libvirt's name for it; its last letter is no other disk's
	at     place  // on the bus Virtio; elsewhere its slot is the SCSI controller's target, or the SATA controller's port
}

// spot has the letter number i, and the place number n of its bus.
func (l layout) spot(bus v1alpha1.DiskBus, i, n int) Spot {
	at := place{0, n}
	if bus == v1alpha1.BusVirtio {
		at = l.disk.after(n)
	}
	return Spot{bus, target(buses[bus].target, i), at}
}

// target is libvirt's name for disk number i.
func target(prefix string, i int) string { return prefix + string(rune('a'+i)) } //nolint:gosec // a letter

// collides tells whether two disks cannot be in both spots.
func (s Spot) collides(other Spot) bool {
	return s.bus == other.bus && s.at == other.at || strings.HasSuffix(other.target, s.target[len(s.target)-1:])
}

func (s Spot) address() *libvirtxml.DomainAddress {
	drive := &libvirtxml.DomainAddressDrive{Controller: new(uint(0)), Bus: new(uint(0)), Target: new(uint(0)), Unit: new(uint(0))}
	switch s.bus {
	case v1alpha1.BusSCSI:
		*drive.Target = uint(s.at.slot)
	case v1alpha1.BusSATA:
		*drive.Unit = uint(s.at.slot)
	case v1alpha1.BusVirtio:
		return s.at.address()
	}
	return &libvirtxml.DomainAddress{Drive: drive}
}

// Spot is where a disk can be plugged that is to be on this bus, "" for Virtio. It is false if there is no room for one:
// without a SCSI controller, and always on the bus SATA.
func (f Facts) Spot(bus v1alpha1.DiskBus) (Spot, bool) {
	bus = cmp.Or(bus, v1alpha1.BusVirtio)
	l, known := layouts[f.Hardware.Layout]
	if !known || len(f.Disks) >= MaxDisks || bus == v1alpha1.BusSCSI && !f.scsi || bus != v1alpha1.BusVirtio && bus != v1alpha1.BusSCSI {
		return Spot{}, false
	}
	for i := range 'z' - 'a' + 1 {
		for k := range MaxDisks {
			if s := l.spot(bus, int(i), k); !slices.ContainsFunc(f.taken, s.collides) {
				return s, true
			}
		}
	}
	return Spot{}, false
}

// CanUnplug tells whether a guest can let go of a disk before its end.
func (f Facts) CanUnplug(d LiveDisk) bool {
	return d.Bus == v1alpha1.BusSCSI || d.Bus == v1alpha1.BusVirtio && f.Hardware.HasLayout()
}

// DiskXML is a disk to be plugged. It has no place in the boot order, and no IO thread of its own, before the guest's next start.
func DiskXML(d Disk, at Spot) (string, error) {
	d.Bus = at.bus
	if err := d.check(); err != nil {
		return "", fmt.Errorf("describing disk %s: %w", d.Name, err)
	}
	device := d.device(at)
	return device.Marshal()
}

// MediumXML is a CD-ROM drive that the guest has with another medium, or with none if d has no path.
func MediumXML(d Disk, has LiveDisk) (string, error) {
	if !d.CDROM || !has.CDROM {
		return "", fmt.Errorf("disk %s is no CD-ROM drive", d.Name)
	}
	return DiskXML(d, has.at)
}

// scsi is the controller of SCSI disks, if there are any.
func (g Guest) scsi() []libvirtxml.DomainController {
	if !slices.ContainsFunc(g.Disks, func(d Disk) bool { return d.bus() == v1alpha1.BusSCSI }) {
		return nil
	}
	c := libvirtxml.DomainController{Type: "scsi", Index: new(uint(0)), Model: "virtio-scsi", Address: g.layout().scsi.address()}
	if own, shared := g.ioThreads(); shared > 0 {
		c.Driver = &libvirtxml.DomainControllerDriver{IOThread: own + shared}
	}
	return []libvirtxml.DomainController{c}
}

// ioThreads are virtio disks' own, which are numbered from 1 in their order, and after them the one of the SCSI controller, if
// any of its disks asks.
func (g Guest) ioThreads() (own, shared uint) {
	for _, d := range g.Disks {
		if d.IOThread && d.bus() == v1alpha1.BusSCSI {
			shared = 1
		} else if d.IOThread {
			own++
		}
	}
	return own, shared
}

// disks are where each has been since its guest started.
func (g Guest) disks() (devices []libvirtxml.DomainDisk) {
	used, threads := map[v1alpha1.DiskBus]int{}, uint(0)
	for i, d := range g.Disks {
		bus, n := d.bus(), i // a virtio disk's slot does not depend on the buses of the others
		if bus != v1alpha1.BusVirtio {
			n = used[bus]
			used[bus]++
		}
		device := d.device(g.layout().spot(bus, i, n))
		device.Boot = &libvirtxml.DomainDeviceBoot{Order: uint(i) + 1}
		if d.IOThread && bus == v1alpha1.BusVirtio {
			threads++
			device.Driver.IOThread = new(threads)
		}
		devices = append(devices, device)
	}
	return devices
}

func (d Disk) bus() v1alpha1.DiskBus {
	if d.CDROM && d.Bus == "" {
		return v1alpha1.BusSATA
	}
	return cmp.Or(d.Bus, v1alpha1.BusVirtio)
}

func (d Disk) check() error {
	l, serial := d.Limits, cmp.Or(d.Serial, d.Name)
	switch {
	case len(serial) > maxSerial || serial == toolsSerial:
		return fmt.Errorf("the serial number %q, which has %d characters at most and is not %s", serial, maxSerial, toolsSerial)
	case buses[d.bus()].name == "" || d.CDROM && d.bus() == v1alpha1.BusVirtio:
		return fmt.Errorf("a disk on the bus %q", d.Bus)
	case d.IOThread && d.bus() == v1alpha1.BusSATA:
		return errors.New("a SATA disk has no IO thread")
	case d.CDROM && d.Path != "" && d.Format != Raw && d.Format != QCOW2:
		return fmt.Errorf("a medium of the format %q", d.Format)
	case min(l.IOPS, l.Bytes, l.BurstIOPS, l.BurstBytes, l.BurstSeconds) < 0:
		return fmt.Errorf("limits below 0: %+v", l)
	}
	for _, b := range d.Backing {
		if b.Format != Raw && b.Format != QCOW2 {
			return fmt.Errorf("%s has format %q", b.Path, b.Format)
		}
	}
	return checkTexts(d.paths(), d.Name, d.Serial)
}

// paths are all paths that are set, or must be.
func (d Disk) paths() (paths []string) {
	if d.Path != "" || !d.CDROM {
		paths = append(paths, d.Path)
	}
	for _, b := range d.Backing {
		paths = append(paths, b.Path)
	}
	return paths
}

func (d Disk) device(at Spot) libvirtxml.DomainDisk {
	device := libvirtxml.DomainDisk{
		Device: "disk",
		// A disk that is full or fails halts the guest, which loses nothing and is resumed: told of errors, it would give up.
		Driver:       &libvirtxml.DomainDiskDriver{Name: "qemu", Type: string(QCOW2), ErrorPolicy: "stop"},
		Source:       file(d.Path),
		BackingStore: chain(d.Backing),
		Target:       &libvirtxml.DomainDiskTarget{Dev: at.target, Bus: buses[at.bus].name},
		IOTune:       d.Limits.tune(),
		Serial:       cmp.Or(d.Serial, d.Name),
		Alias:        &libvirtxml.DomainAlias{Name: userAlias + d.Name},
		Address:      at.address(),
	}
	switch {
	case d.CDROM:
		// Its cache is the host's, which guests of one image share.
		device.Device, device.ReadOnly = "cdrom", &libvirtxml.DomainDiskReadOnly{}
		device.Driver.Type = string(cmp.Or(d.Format, Raw))
		if d.Path == "" {
			device.Source, device.BackingStore = nil, nil
		}
		return device
	case d.Volume != nil:
		d.Volume.apply(&device, d.Path)
	}
	device.Driver.Discard, device.Driver.DetectZeros = "unmap", "unmap"
	device.Driver.Cache, device.Driver.IO = d.cache(), "threads"
	if device.Driver.Cache == "none" && d.Volume != nil && d.Volume.Block {
		device.Driver.IO = "native"
	}
	return device
}

// cache is QEMU's mode of the host's cache.
func (d Disk) cache() string {
	switch {
	case d.Volume != nil && d.Volume.Shared: // each guest is to read what another wrote
		return "none"
	case d.Cache != "":
		return strings.ToLower(string(d.Cache))
	case d.Ephemeral: // what a host's power cut leaves of it, nobody reads
		return "unsafe"
	case d.Direct:
		return "none"
	}
	return "writeback"
}

// apply makes a disk one of a volume.
func (v Volume) apply(d *libvirtxml.DomainDisk, path string) {
	d.Driver.Type = string(Raw)
	if v.Block {
		d.Source = &libvirtxml.DomainDiskSource{Block: &libvirtxml.DomainDiskSourceBlock{Dev: path}}
	}
	if v.ReadOnly {
		d.ReadOnly = &libvirtxml.DomainDiskReadOnly{}
	}
	if v.Shared {
		// Each guest is to hear of an error, which another node's guest may be halted by for ever.
		d.Shareable = &libvirtxml.DomainDiskShareable{}
		d.Driver.ErrorPolicy = "report"
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

// tune is nil without limits.
func (l Limits) tune() *libvirtxml.DomainDiskIOTune {
	if l == (Limits{}) {
		return nil
	}
	t := &libvirtxml.DomainDiskIOTune{
		TotalIopsSec: uint64(l.IOPS), TotalBytesSec: uint64(l.Bytes), //nolint:gosec // check allows no negative number
		TotalIopsSecMax: uint64(l.BurstIOPS), TotalBytesSecMax: uint64(l.BurstBytes), //nolint:gosec // likewise
	}
	// QEMU refuses the length of a burst that is none.
	if l.BurstIOPS > 0 {
		t.TotalIopsSecMaxLength = uint64(l.BurstSeconds) //nolint:gosec // likewise
	}
	if l.BurstBytes > 0 {
		t.TotalBytesSecMaxLength = uint64(l.BurstSeconds) //nolint:gosec // likewise
	}
	return t
}
