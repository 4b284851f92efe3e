package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Condition types of a VirtualMachine. The operator writes Scheduled, Ready and
// Stalled; the node's agent writes DisksReady, Running, GuestAgentConnected and UpToDate.
const (
	ConditionScheduled           = "Scheduled"           // the berth has a node
	ConditionDisksReady          = "DisksReady"          // the guest's disks exist on the node
	ConditionRunning             = "Running"             // the guest's vCPUs run
	ConditionGuestAgentConnected = "GuestAgentConnected" // the guest agent in the guest answers
	// ConditionReady: the guest runs and its probes pass. Absent where the spec is fulfilled without a running guest:
	// it is stopped or paused as asked, or powered itself off and its restartPolicy leaves it so.
	ConditionReady = "Ready"
	// ConditionStalled: the guest failed, and its restartPolicy leaves it so, or it waits for its user. Absent else. The
	// name is kstatus'.
	ConditionStalled  = "Stalled"
	ConditionUpToDate = "UpToDate" // the guest was started from the spec as it is. Absent while there is no guest
)

// Phase sums a VirtualMachine up in one word, for display only: nothing decides by it.
//
// +kubebuilder:validation:MaxLength=64
type Phase string

// The phases.
const (
	PhasePending   Phase = "Pending"
	PhaseStarting  Phase = "Starting"
	PhaseWaiting   Phase = "Waiting"
	PhaseRunning   Phase = "Running"
	PhasePaused    Phase = "Paused"
	PhaseStopping  Phase = "Stopping"
	PhaseStopped   Phase = "Stopped"
	PhaseBackOff   Phase = "BackOff"
	PhaseSucceeded Phase = "Succeeded"
	PhaseFailed    Phase = "Failed"
	PhaseUnknown   Phase = "Unknown"
)

// VirtualMachineStatus is what Berth sees of a guest.
type VirtualMachineStatus struct {
	// observedGeneration is the generation of the spec that this status answers to.
	// It is -1 as long as Berth has not seen the VirtualMachine.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// phase sums the conditions up in one word.
	// +optional
	Phase Phase `json:"phase,omitempty"`
	// conditions are the facts: Scheduled, DisksReady, Running, GuestAgentConnected, Ready, Stalled, UpToDate.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=16
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// nodeName is the node of the present berth, or of the last one: node-local disks stay there.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	NodeName string `json:"nodeName,omitempty"`
	// berth is the pod in which the guest may run. Only there does an agent start it.
	// +optional
	Berth *BerthReference `json:"berth,omitempty"`
	// addresses are the berth's addresses, which lead to the guest.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MaxLength=64
	Addresses []string `json:"addresses,omitempty"`
	// image is the image that the guest boots from, as in the spec.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Image string `json:"image,omitempty"`
	// vcpus is the number of the guest's virtual processors: cores x sockets x threads of the spec.
	// +optional
	VCPUs int32 `json:"vcpus,omitempty"`
	// restarts counts the guest's restarts in its present berth.
	// +optional
	Restarts int32 `json:"restarts,omitempty"`
	// resets counts how often the guest was reset since its start, from inside or outside, as far as the node's agent saw it.
	// +optional
	Resets int32 `json:"resets,omitempty"`
	// lastReset is when it last was.
	// +optional
	LastReset *metav1.Time `json:"lastReset,omitempty"`
	// guest is what the guest agent and Berth's guest program tell.
	// +optional
	Guest *GuestInfo `json:"guest,omitempty"`
	// disks are the guest's disks on the node, also those that the spec has no more, its claims, and those that are lost or on
	// another node.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=64
	Disks []DiskStatus `json:"disks,omitempty"`
	// kernel is the kernel's image, if the guest boots one directly.
	// +optional
	Kernel *KernelStatus `json:"kernel,omitempty"`
	// ended is how the guest ended for good, as its restartPolicy has it. No other is started before restartedAt changes, or
	// state was Stopped, whatever becomes of the pod.
	// +optional
	Ended *Ended `json:"ended,omitempty"`
	// lastExit is how the guest last ended.
	// +optional
	LastExit *LastExit `json:"lastExit,omitempty"`
	// pendingChanges are the fields of the spec that are not what the guest was started with. They take effect at its
	// next restart, and go when they are changed back.
	// +optional
	// +listType=map
	// +listMapKey=path
	// +kubebuilder:validation:MaxItems=64
	PendingChanges []PendingChange `json:"pendingChanges,omitempty"`
	// releasedBerth is the UID of the last berth of which the node's agent has proven that no process of the guest is left.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	ReleasedBerth types.UID `json:"releasedBerth,omitempty"`
}

// ChangeEffect is what it takes for a change of the spec to reach the guest.
//
// +kubebuilder:validation:Enum=Restart;NewBerth;Live
type ChangeEffect string

// The effects of changes.
const (
	EffectRestart  ChangeEffect = "Restart"  // any restart of the guest, also one in place
	EffectNewBerth ChangeEffect = "NewBerth" // the next start of the guest is in a new berth, so its address changes
	EffectLive     ChangeEffect = "Live"     // the running guest takes it, once nothing is in its way any more
)

// PendingChange is a field of the spec that is not what the guest was started with.
type PendingChange struct {
	// path is the field's path in the spec, such as cpu.cores, disks[root].bus or disks[data].
	// +required
	// +kubebuilder:validation:MaxLength=512
	Path string `json:"path"`
	// from is the value that the guest was started with; empty if it had none, or if the value is private or long.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	From string `json:"from,omitempty"`
	// to is the value in the spec; empty if it has none, or if the value is private or long.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	To string `json:"to,omitempty"`
	// effect is what it takes for the change to reach the guest: Restart, NewBerth or, of the running guest, Live.
	// +required
	Effect ChangeEffect `json:"effect"`
}

// BerthReference names a berth.
type BerthReference struct {
	// podName is the pod's name.
	// +required
	// +kubebuilder:validation:MaxLength=253
	PodName string `json:"podName"`
	// podUID is the pod's UID.
	// +required
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	PodUID types.UID `json:"podUID"`
	// image is the image that the pod's container had when Berth accepted the pod. No guest is started in one of another image.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Image string `json:"image,omitempty"`
}

// GuestInfo is what the guest agent and Berth's guest program tell. It is the guest's own word, shortened.
type GuestInfo struct {
	// hostname is the guest's host name.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	Hostname string `json:"hostname,omitempty"`
	// os is the guest's operating system, such as "Debian GNU/Linux 12 (bookworm)".
	// +optional
	// +kubebuilder:validation:MaxLength=256
	OS string `json:"os,omitempty"`
	// kernel is the guest's kernel release.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Kernel string `json:"kernel,omitempty"`
	// guestAgentVersion is the guest agent's version.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	GuestAgentVersion string `json:"guestAgentVersion,omitempty"`
	// tools is the version of Berth's guest program that answered last since the guest's start.
	// +optional
	// +kubebuilder:validation:MaxLength=32
	Tools string `json:"tools,omitempty"`
}

// DiskStatus is a disk of a guest: the operator tells of its claim, the node's agent of the rest.
type DiskStatus struct {
	// name is the disk's name in the spec.
	// +required
	// +kubebuilder:validation:MaxLength=20
	Name string `json:"name"`
	// image is the image that the disk was made from, as it stood in the spec.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Image string `json:"image,omitempty"`
	// imageDigest is that image's digest. A tag that moves does not change it.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	ImageDigest string `json:"imageDigest,omitempty"`
	// size is what the guest sees.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	Size *resource.Quantity `json:"size,omitempty"`
	// ephemeral is true for a disk that is fresh at every start, and for a CD-ROM. Every other disk without a claim binds its guest to the node.
	// +optional
	Ephemeral bool `json:"ephemeral,omitempty"`
	// detached is true for a disk that the node keeps though the spec has it no more. It binds the guest to the node until
	// removeDisks names it.
	// +optional
	Detached bool `json:"detached,omitempty"`
	// claimName is the name of the disk's PersistentVolumeClaim.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	ClaimName string `json:"claimName,omitempty"`
	// claimUID is that claim's UID.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	ClaimUID types.UID `json:"claimUID,omitempty"`
	// capacity is what that claim's volume has.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	Capacity *resource.Quantity `json:"capacity,omitempty"`
	// volumeMode is that claim's: Filesystem or Block.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	VolumeMode corev1.PersistentVolumeMode `json:"volumeMode,omitempty"`
	// usedClaimUID is the UID of the claim that the guest's disk was made or found on. That one is never seeded again.
	// +optional
	// +kubebuilder:validation:Type=string
	// +kubebuilder:validation:MaxLength=64
	UsedClaimUID types.UID `json:"usedClaimUID,omitempty"`
	// seeded is true where the claim was seeded from image, and absent where it had data already or there is no image.
	// +optional
	Seeded bool `json:"seeded,omitempty"`
	// progress is how far the making of the disk has come; absent once it is made.
	// +optional
	Progress *DiskProgress `json:"progress,omitempty"`
}

// DiskDoing is what is being done to make a disk.
//
// +kubebuilder:validation:Enum=Seeding
type DiskDoing string

// DiskSeeding is that a disk's claim is written from its image.
const DiskSeeding DiskDoing = "Seeding"

// DiskProgress is how far the making of a disk has come.
type DiskProgress struct {
	// doing is what is being done: Seeding.
	// +required
	Doing DiskDoing `json:"doing"`
	// done is how much of it is done.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	Done *resource.Quantity `json:"done,omitempty"`
	// total is how much there is to do, if that is known.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	Total *resource.Quantity `json:"total,omitempty"`
}

// KernelStatus is the image that the guest's kernel is from.
type KernelStatus struct {
	// image is the image, as it stood in the spec.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Image string `json:"image,omitempty"`
	// imageDigest is that image's digest. A tag that moves does not change it.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	ImageDigest string `json:"imageDigest,omitempty"`
}

// Ended is how a guest ended that its restartPolicy does not start again.
type Ended struct {
	// phase is Succeeded or Failed.
	// +required
	Phase Phase `json:"phase"`
	// reason is why, in one word.
	// +required
	Reason Reason `json:"reason"`
	// restartedAt is the spec's restartedAt of that guest.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RestartedAt string `json:"restartedAt,omitempty"`
	// time is when the operator saw it. ttlSecondsAfterFinished counts from then.
	// +optional
	Time *metav1.Time `json:"time,omitempty"`
}

// LastExit is how a guest ended.
type LastExit struct {
	// reason is why, in one word.
	// +required
	Reason Reason `json:"reason"`
	// exitCode is the berth's exit code: after a power-off 0, or what the guest wrote to its port dev.berth.exit.0; 134 after
	// a panic, 137 after a kill, 1 after a failure of QEMU.
	// +required
	ExitCode int32 `json:"exitCode"`
	// time is when the agent saw it.
	// +required
	Time metav1.Time `json:"time"`
	// message tells more.
	// +optional
	// +kubebuilder:validation:MaxLength=2048
	Message string `json:"message,omitempty"`
}
