package plan

import (
	"slices"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// Have is what the host has of one guest, read at one moment.
type Have struct {
	// Domain is libvirt's record of it.
	Domain Domain
	// Process is its QEMU, as /proc has it, whatever libvirt says.
	Process Process
	// Container is the present container of the wanted berth, or of the berth that the domain was made for.
	Container Container
	// Shim is the shim of that container; nil until the agent has its socket and it has spoken.
	Shim *Shim
	// ShimSilent: there is a shim, and it has not said yet whether it has had a guest.
	ShimSilent bool
	// Base is the state of each image that the guest needs, by what needs it: a disk's name, or Kernel.
	Base map[string]Image
	// Disks are the guest's disks that exist on this node.
	Disks []v1alpha1.DiskStatus
	// Kept: the guest has a directory on this node.
	Kept bool
	// Left: there is something of a run, a seed or a socket, though its QEMU may be gone.
	Left bool
	// Pending are the changes of the spec since the guest was started; read only while there is one.
	Pending []v1alpha1.PendingChange
	// Guest is what the guest agent told; nil if it did not.
	Guest *v1alpha1.GuestInfo
	// AgentConnected: the guest agent has opened its channel.
	AgentConnected bool
	// End is how the guest ended; nil while it is there, or when nothing is known.
	End *End
	// Unknown is why some of this is unknown; nil when all of it is known.
	Unknown error
}

// Kernel is the key of the kernel's image in Have.Base.
const Kernel = "\x00kernel"

// Domain is the state of a domain.
type Domain uint8

// The states of a domain. Blocked is halted by QEMU, because its disk is full or fails. Crashed is a guest that
// panicked and is kept for us to see.
const (
	DomainUnknown Domain = iota
	DomainAbsent
	DomainPaused
	DomainRunning
	DomainBlocked
	DomainCrashed
)

// Process is where a guest's QEMU is.
type Process uint8

// The places of a QEMU process. Loose is outside of every container: not placed yet, or lost.
// Elsewhere is in a container that is not the present one. Several is more than one process.
const (
	ProcessUnknown Process = iota
	ProcessNone
	ProcessLoose
	ProcessPlaced
	ProcessElsewhere
	ProcessSeveral
)

// Container is the state of a berth's container.
type Container uint8

// The states of a container.
const (
	ContainerUnknown Container = iota
	ContainerAbsent
	ContainerAlive
	ContainerDead
)

// Shim is what a shim says of itself.
type Shim struct {
	// Attached: a guest was handed to it. A shim serves one in its life.
	Attached bool
	// Running: it was told that the guest runs or is paused.
	Running bool
	// RunningFor is for how long.
	RunningFor time.Duration
	// Terminating: kubelet asked it to end, TerminatingFor ago.
	Terminating    bool
	TerminatingFor time.Duration
	// Exiting: it was told how the guest ended.
	Exiting bool
	// Lacks are the kinds of devices that the guest needs and that it does not take, sorted.
	Lacks []string
}

// Image is the state of an image on this node.
type Image struct {
	State ImageState
	// Progress tells how far a pull is, for people.
	Progress string
	// Err is why a pull failed, Retry when it may be tried again. An image on its way has the Err of the last attempt
	// until the registry answers, so that retries do not hide what is wrong.
	Err   error
	Retry time.Time
	// Digest is the image's digest once known.
	Digest string
}

// ImageState is the state of an image on this node.
type ImageState uint8

// The states of an image. One that is there, but not proven to be for this guest, is missing.
const (
	ImageMissing ImageState = iota
	ImagePulling
	ImageFailed
	ImageReady
)

// End is how a guest ended.
type End struct {
	Reason  v1alpha1.Reason
	Code    int32
	Message string
	// Told is when the shim was told so; from then on the verdict stands. Zero before.
	Told time.Time
}

// ForcedOff is the end of a guest that would not power off, by the agent or, where that is away, by kubelet.
var ForcedOff = End{Reason: v1alpha1.ReasonForcedOff, Code: 137, Message: "the guest did not power off within its grace period and was ended"}

// ShimLost is the end of a guest whose shim was killed.
var ShimLost = End{Reason: v1alpha1.ReasonShimLost, Code: 137, Message: "the berth's container ended, and the guest with it"}

// guest: there is, or may be, a QEMU of this guest.
func (h *Have) guest() bool {
	return h.Domain != DomainAbsent || h.Process != ProcessNone
}

// contradictory: libvirt has no domain for a QEMU that lives, or says that its guest panicked.
func (h *Have) contradictory() bool {
	return (h.Domain == DomainAbsent || h.Domain == DomainCrashed) && (h.Process == ProcessLoose || h.Process == ProcessPlaced)
}

// keepsDisks: there are disks on this node that outlive a berth.
func (h *Have) keepsDisks() bool {
	return slices.ContainsFunc(h.Disks, func(d v1alpha1.DiskStatus) bool { return !d.Ephemeral })
}
