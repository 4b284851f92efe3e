package plan

import (
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
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
	// ShimStarting: the container runs, and its shim has made no socket yet, of which nothing will tell.
	ShimStarting bool
	// ShimBroken: the shim did not keep to the agent's protocol, so that nobody talks with it for some minutes.
	ShimBroken bool
	// UnsupportedRuntime is what runs the container if that is nothing that Berth works with, "" if it is.
	UnsupportedRuntime string
	// Images is the state of each image that the guest needs, by what it is for.
	Images map[string]Image
	// Disks are the guest's disks that exist on this node.
	Disks []machine.Disk
	// Volumes are the claims' volumes that are attached for the guest on this node.
	Volumes []Volume
	// Kept: the guest has a directory on this node.
	Kept bool
	// RanWithoutSeed: it had no cloud-init data at its first start on this node; read only if nobody asks for any.
	RanWithoutSeed bool
	// Left: there is something of a run, a seed or a socket, though its QEMU may be gone.
	Left bool
	// Resets is how often the domain was reset since this agent sees it, LatestResets when, the newest first, as far as they
	// matter; zero for those that were not.
	Resets       int32
	LatestResets [resetLoop]time.Time
	// Facts are what the guest's domain says of itself; zero without one.
	Facts domain.Facts
	// Pending are the changes of the spec since the guest was started; read only while there is one.
	Pending []v1alpha1.PendingChange
	// Guest is what the guest agent told; nil if it did not.
	Guest *v1alpha1.GuestInfo
	// AgentChannelOpen: libvirt says that the guest agent has opened its channel.
	AgentChannelOpen bool
	// AgentConnected: so it is, or was a moment ago, before this agent began to ask.
	AgentConnected bool
	// Exit is how the guest ended; nil while it is there, or when nothing is known.
	Exit *Exit
	// QEMUOutput is the end of what QEMU has written, where nothing tells how it ended.
	QEMUOutput string
	// Unknown is why the domain, the process or the container is unknown; nil when all three are known.
	Unknown error
	// StartUnknown is why something else is unknown: the guest's directory, disks, images, or what it was started with. A
	// guest is kept and ended all the same, none is started; nil when all of it is known.
	StartUnknown error
}

// Domain is the state of a domain.
type Domain uint8

// The states of a domain. PausedOnIOError is halted by QEMU, because its disk is full or fails. Crashed is a guest that
// panicked and is kept for us to see.
const (
	DomainUnknown Domain = iota
	DomainAbsent
	DomainPaused
	DomainRunning
	DomainPausedOnIOError
	DomainCrashed
)

// Process is where a guest's QEMU is.
type Process uint8

// The places of a QEMU process. Unplaced is outside of every container: not placed yet, or lost. InContainer is in the
// present one, InOtherContainer in one that is not. Multiple is more than one process.
const (
	ProcessUnknown Process = iota
	ProcessNone
	ProcessUnplaced
	ProcessInContainer
	ProcessInOtherContainer
	ProcessMultiple
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
	// ResetTold is the latest of the guest's resets that it was told of; zero: of none.
	ResetTold time.Time
	// Terminating: kubelet asked it to end, TerminatingFor ago.
	Terminating    bool
	TerminatingFor time.Duration
	// Exiting: it was told how the guest ended.
	Exiting bool
	// Draining: it has not read all yet that a guest which is gone may have left to it.
	Draining bool
	// GuestTools is the version of the guest program that answered last, "" if none has.
	GuestTools string
	// ExitText is what the guest wrote last to its exit port.
	ExitText string
	// Resets and NMIs count how often somebody asked for one, ResetsDone and NMIsDone how many of them were confirmed.
	Resets, ResetsDone, NMIs, NMIsDone uint64
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

// Volume is a claim's volume that is attached for a guest.
type Volume struct {
	// Disk is the name of the disk that it has, Claim the claim's UID.
	Disk  string
	Claim types.UID
	// Made: the disk is there. Seed is the digest of the image that it was seeded from, "" if it was not.
	Made bool
	Seed string
	// Size is what the guest sees, Target what it could see by the volume's size, when the claim had Capacity; in bytes.
	Size, Target, Capacity int64
	// Working: a worker makes it, or looks how much it can have. Done and Total are bytes of its image, 0 without one.
	Working     bool
	Done, Total int64
	// Err is why the worker failed last, also while the next works, Retry when that may begin.
	Err   error
	Retry time.Time
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

// Exit is how a guest ended.
type Exit struct {
	Reason  v1alpha1.Reason
	Code    int32
	Message string
	// ReportedAt is when the shim was told so; from then on the verdict stands. Zero before.
	ReportedAt time.Time
	// Began is when the container did whose end it is, as kubelet tells it. Zero if kubelet does not tell.
	Began time.Time
}

// ForcedOff is the end of a guest that would not power off, by the agent or, where that is away, by kubelet.
var ForcedOff = Exit{Reason: v1alpha1.ReasonForcedOff, Code: 137, Message: "the guest did not power off within its grace period and was ended"}

// ShimLost is the end of a guest whose shim was killed.
var ShimLost = Exit{Reason: v1alpha1.ReasonShimLost, Code: 137, Message: "the berth's container ended, and the guest with it"}

// shimLacks: the shim waits for a guest, and does not take all that it needs.
func (h *Have) shimLacks() bool { return h.Shim != nil && !h.Shim.Attached && len(h.Shim.Lacks) > 0 }

// draining: the guest is gone, and what it left is still to come from its shim.
func (h *Have) draining() bool {
	return !h.guest() && h.Shim != nil && h.Shim.Attached && h.Shim.Draining && !h.Shim.Exiting
}

// guest: there is, or may be, a QEMU of this guest.
func (h *Have) guest() bool {
	return h.Domain != DomainAbsent || h.Process != ProcessNone
}

// contradictory: libvirt has no domain for a QEMU that lives, or says that its guest panicked.
func (h *Have) contradictory() bool {
	return (h.Domain == DomainAbsent || h.Domain == DomainCrashed) &&
		(h.Process == ProcessUnplaced || h.Process == ProcessInContainer || h.Process == ProcessInOtherContainer)
}

// keepsDisks: there are disks on this node that outlive a berth.
func (h *Have) keepsDisks() bool {
	return slices.ContainsFunc(h.Disks, func(d machine.Disk) bool { return !d.Ephemeral })
}
