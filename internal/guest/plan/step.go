package plan

import (
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
)

// Step is one change to the host. Each says all that it acts on, accepts that its work is already done, and leaves
// nothing half.
//
//sumtype:decl
type Step interface{ name() string }

// The steps of a guest's life, in the order of a start; then those of its end.
type (
	// PullImages begins to fetch the images that are missing, with the credentials of the Secrets, and does not wait.
	PullImages struct {
		Images  []machine.Image
		Secrets []types.NamespacedName
	}
	// AttachVolumes takes the volumes of claims from the berth's container to where QEMU reaches them.
	AttachVolumes struct{ Disks []machine.Disk }
	// MakeVolumes has workers make the disks on them, from images that have their digests, or look how large those can be,
	// and does not wait.
	MakeVolumes struct{ Disks []machine.Disk }
	// GrowDisk tells QEMU that a disk has so many bytes, which are more than it had. Path is empty of one on a volume.
	GrowDisk struct {
		Disk, Path string
		Size       int64
	}
	// MakeDisk makes an overlay, or says what is in a CD-ROM; the image has its digest. Anew replaces one that is there.
	MakeDisk struct {
		Disk machine.Disk
		Anew bool
	}
	// DeleteDisk deletes a disk that is on the node's storage, and that no QEMU has.
	DeleteDisk struct{ Disk string }
	// SetRecord has the domain tell with what spec its guest runs.
	SetRecord struct{ Record string }
	// PlugDisk gives a disk, which is made, to a guest that runs.
	PlugDisk struct {
		Disk machine.Disk
		At   domain.Spot
	}
	// UnplugDisk asks a guest that runs to let go of a disk, and does not wait.
	UnplugDisk struct{ Disk domain.LiveDisk }
	// TuneDisk sets the limits of a guest's disk.
	TuneDisk struct {
		Disk   domain.LiveDisk
		Limits domain.Limits
	}
	// ChangeMedium puts what the VM's directory has for a CD-ROM into the drive, or takes out what is in it. A guest that
	// holds it is asked, or not if it is done by Force.
	ChangeMedium struct {
		Disk  domain.LiveDisk
		Force bool
	}
	// KeepKernel keeps the kernel's image, which has its digest, for as long as the guest is kept.
	KeepKernel struct{ Image machine.Image }
	// CreateDomain has libvirt start QEMU with its vCPUs halted, for a berth. The kernel's image has its digest.
	CreateDomain struct {
		Machine machine.Machine
		Berth   types.UID
	}
	// MoveToCgroup moves QEMU into the container's cgroup.
	MoveToCgroup struct{}
	// ConnectNICs moves the taps into the berth's network, of whose localhost the shim serves some ports.
	ConnectNICs struct {
		NICs          []machine.NIC
		ReservedPorts []uint16
	}
	// WriteSeed writes the cloud-init data of a guest.
	WriteSeed struct{ Machine machine.Machine }
	// HandOver hands the console, the ports, the display and what serves the NICs to the shim.
	HandOver struct{ Machine machine.Machine }
	// Resume lets the vCPUs run, after a last proof that this is the only QEMU of the guest, in the right place.
	// PausedExternally: somebody else than Berth had halted them.
	Resume struct{ PausedExternally bool }
	// Pause halts the vCPUs.
	Pause struct{}
	// NotifyShim tells the shim that the guest runs, or is paused, and when it was last reset, if it was.
	NotifyShim struct {
		Paused bool
		Reset  time.Time
	}
	// Reset resets the guest, as a button would, and InjectNMI sends it a non-maskable interrupt.
	Reset     struct{}
	InjectNMI struct{}
	// ConfirmActions tells the shim that as many of both are done.
	ConfirmActions struct{ Resets, NMIs uint64 }
	// StartTools asks the guest agent to start the guest program, and does not wait: many refuse.
	StartTools struct{}
	// Shutdown asks the guest to power off, by its guest agent too if that has opened its channel.
	Shutdown struct{ GuestAgent bool }
	// Destroy ends QEMU; libvirt may know its domain for a moment more.
	Destroy struct{}
	// Kill ends every QEMU process of the guest that libvirt does not know, or that lives in the wrong place.
	Kill struct{}
	// EndShim has the shim end as the guest did.
	EndShim struct{ Exit Exit }
	// CleanUp removes the sockets and the seed of a guest that is gone, and detaches its volumes.
	CleanUp struct{}
	// RemoveDisks removes the guest's directory.
	RemoveDisks struct{}
)

// Name is the step's name in logs and metrics, where it stays the same from version to version.
func Name(s Step) string { return s.name() }

func (PullImages) name() string     { return "PullImages" }
func (AttachVolumes) name() string  { return "AttachVolumes" }
func (MakeVolumes) name() string    { return "MakeVolumes" }
func (GrowDisk) name() string       { return "GrowDisk" }
func (MakeDisk) name() string       { return "MakeDisk" }
func (DeleteDisk) name() string     { return "DeleteDisk" }
func (SetRecord) name() string      { return "SetRecord" }
func (PlugDisk) name() string       { return "PlugDisk" }
func (UnplugDisk) name() string     { return "UnplugDisk" }
func (TuneDisk) name() string       { return "TuneDisk" }
func (ChangeMedium) name() string   { return "ChangeMedium" }
func (KeepKernel) name() string     { return "KeepKernel" }
func (CreateDomain) name() string   { return "CreateDomain" }
func (MoveToCgroup) name() string   { return "MoveToCgroup" }
func (ConnectNICs) name() string    { return "ConnectNICs" }
func (WriteSeed) name() string      { return "WriteSeed" }
func (HandOver) name() string       { return "HandOver" }
func (Resume) name() string         { return "Resume" }
func (Pause) name() string          { return "Pause" }
func (NotifyShim) name() string     { return "NotifyShim" }
func (Reset) name() string          { return "Reset" }
func (InjectNMI) name() string      { return "InjectNMI" }
func (ConfirmActions) name() string { return "ConfirmActions" }
func (StartTools) name() string     { return "StartTools" }
func (Shutdown) name() string       { return "Shutdown" }
func (Destroy) name() string        { return "Destroy" }
func (Kill) name() string           { return "Kill" }
func (EndShim) name() string        { return "EndShim" }
func (CleanUp) name() string        { return "CleanUp" }
func (RemoveDisks) name() string    { return "RemoveDisks" }
