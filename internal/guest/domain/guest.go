package domain

import (
	"net"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// MaxDisks is how many disks a guest can have: the slots that every layout keeps for them.
const MaxDisks = 16

// Guest is all that a domain is made of. Paths are the host's, absolute, and
// chosen by the agent; strings may hold no control characters.
type Guest struct {
	// UUID is the VirtualMachine's UID, in the usual form of 36 characters.
	UUID string
	// Name is the domain's name in libvirt, unique on the host.
	Name string
	// Identity is kept in the domain's metadata.
	Identity Identity
	// Hardware is kept in the domain's metadata, too.
	Hardware Hardware
	// Acceleration is how the host runs guests.
	Acceleration v1alpha1.Acceleration
	// Partition is the cgroup, as libvirt writes it, that QEMU is born in; libvirt's own if empty.
	Partition string
	// CPU is the guest's virtual processors.
	CPU CPU
	// Memory is the guest's memory, in bytes; whole KiB are used.
	Memory int64
	// TranslationCache is the limit of QEMU's cache of translated code under emulation, in bytes; whole MiB are used.
	TranslationCache int64
	// Kernel boots a kernel directly; nil boots from the disks.
	Kernel *Kernel
	// Disks are in boot order, at most MaxDisks.
	Disks []Disk
	// Seed is the path of the NoCloud image, Tools that of the disk with the guest program; empty if there is none.
	Seed, Tools string
	// Ignition is the path of the configuration for it; empty if there is none.
	Ignition string
	// NIC is the network interface; nil if there is none.
	NIC *NIC
	// Console is the path, at most 107 bytes, of the socket that libvirt makes for the serial console.
	Console string
	// GuestPort and ExitPort are likewise those of the ports of the guest program and of the guest's exit code.
	GuestPort, ExitPort string
	// Display is the guest's screen; nil if it has none.
	Display *Display
	// UID and GID are whom QEMU runs as. Neither may be 0.
	UID, GID uint32
}

// Identity says whose a domain is, as its metadata have it.
type Identity struct {
	// Namespace and Name are the VirtualMachine's.
	Namespace string `xml:"namespace,attr"`
	Name      string `xml:"name,attr"`
	// VM is the VirtualMachine's UID.
	VM string `xml:"vm,attr"`
	// Berth is the UID of the pod that the guest was started for.
	Berth string `xml:"berth,attr"`
	// Record is the berth.Record of the spec that the guest was started with.
	Record string `xml:",chardata"`
}

// CPU is the guest's virtual processors. The numbers are at least 1.
type CPU struct {
	Sockets, Cores, Threads int
	// Model is berth.CPUHostModel, berth.CPUHostPassthrough or one of libvirt's names.
	Model string
}

// Kernel is a kernel to boot directly.
type Kernel struct {
	// Path and Initrd are files; Initrd may be empty.
	Path, Initrd string
	CommandLine  string
}

// Disk is a disk of the guest: a qcow2 file of its own, what is on a volume, or a CD-ROM drive.
type Disk struct {
	// Name is the disk's in the spec: what Facts knows it by.
	Name string
	// Serial is the serial number that the guest sees, at most 20 characters; Name if it is empty.
	Serial string
	// CDROM: the guest only reads it, and its medium can be changed. Path "" is an empty drive.
	CDROM bool
	Path  string
	// Format is Path's on a CD-ROM. Elsewhere it is as Volume says.
	Format Format
	// Backing is the chain of read-only files below Path, nearest first. It is all of the chain: what is not named is not opened.
	Backing []Backing
	// Volume says how Path is on a volume; nil for a qcow2 file.
	Volume *Volume
	// Bus is by default Virtio, of a CD-ROM SATA.
	Bus v1alpha1.DiskBus
	// Cache is by default none where Direct says that it can be, else writeback; an Ephemeral disk ignores flushes. A
	// CD-ROM has none to choose, and a Shared volume is never cached.
	Cache             v1alpha1.DiskCache
	Direct, Ephemeral bool
	// IOThread: a thread of QEMU's own serves it, or all SCSI disks, from the guest's next start on. Not on SATA.
	IOThread bool
	Limits   Limits
}

// Limits are what a disk may do in a second; 0 is no limit.
type Limits struct {
	// IOPS are requests, Bytes what they read and write.
	IOPS, Bytes int64
	// BurstIOPS and BurstBytes are allowed for BurstSeconds, each above its limit. With any of them, BurstSeconds is at least 1.
	BurstIOPS, BurstBytes, BurstSeconds int64
}

// Volume is where a disk's bytes are as they are: in a raw file, or on a block device.
type Volume struct {
	// Block: it is a block device.
	Block bool
	// ReadOnly: the guest only reads it. Shared: other guests write it, too.
	ReadOnly, Shared bool
}

// Backing is a read-only file below a disk.
type Backing struct {
	Path   string
	Format Format
}

// Display is a screen that is seen by VNC, with a keyboard and a tablet.
type Display struct {
	Type v1alpha1.DisplayType
	// Socket is the path, at most 107 bytes, of the socket that QEMU makes for viewers: its user must be able to.
	Socket string
}

// Format is a disk image's format. It is always named, because a probed format is what the guest wants it to be.
type Format string

// The formats.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// NIC is a network interface on a tap that libvirt makes.
type NIC struct {
	// Tap is the tap's name on the host.
	Tap string
	MAC net.HardwareAddr
}
