package v1alpha1

// Reason is one word for why something is as it is. Conditions, Events and
// metrics use the same word, and it never changes its meaning once released.
//
// +kubebuilder:validation:MaxLength=64
type Reason string

// Reasons of the condition Scheduled.
const (
	// ReasonScheduled: the berth has a node. Next: its agent prepares the guest.
	ReasonScheduled Reason = "Scheduled"
	// ReasonNotWanted: the spec asks for no guest, so there is no berth. Next: set state to Running.
	ReasonNotWanted Reason = "NotWanted"
	// ReasonPending: the scheduler has not looked at the berth yet. Next: nothing to do, it will.
	ReasonPending Reason = "Pending"
	// ReasonUnschedulable: no node takes the berth. Next: the message is the scheduler's own; mend the request or the nodes.
	ReasonUnschedulable Reason = "Unschedulable"
	// ReasonNoHost: no node of the cluster is a usable KVM host. Next: look at `kubectl get vmhost`.
	ReasonNoHost Reason = "NoHost"
	// ReasonBerthRefused: the API server refused the berth (quota, admission, Pod Security). Next: the message says which rule.
	ReasonBerthRefused Reason = "BerthRefused"
	// ReasonPodNameTaken: a pod that is not ours has the VM's name. Next: delete that pod or rename the VM.
	ReasonPodNameTaken Reason = "PodNameTaken"
	// ReasonNodeLost: the berth's node does not answer; the guest may still run. Next: bring the node back, delete its
	// Node object, or taint it out-of-service when it is surely off.
	ReasonNodeLost Reason = "NodeLost"
	// ReasonBerthVanished: somebody removed the berth, finalizer and all, before its guest was proven gone. Next: nothing to
	// do while its node lives, the agent there tells; else as for NodeLost.
	ReasonBerthVanished Reason = "BerthVanished"
)

// Reasons of the condition DisksReady.
const (
	// ReasonDisksReady: every disk exists on the node.
	ReasonDisksReady Reason = "DisksReady"
	// ReasonPullingImage: an image is on its way to the node. Next: nothing to do; the message shows progress.
	ReasonPullingImage Reason = "PullingImage"
	// ReasonImageInvalid: the image reference cannot be read. Next: write registry/repository:tag or @sha256:….
	ReasonImageInvalid Reason = "ImageInvalid"
	// ReasonImageNotFound: the registry has no such image. Next: correct the reference or push the image.
	ReasonImageNotFound Reason = "ImageNotFound"
	// ReasonImageUnauthorized: the registry refused the credentials, or wants some. Next: mend imagePullSecrets.
	ReasonImageUnauthorized Reason = "ImageUnauthorized"
	// ReasonRegistryUnreachable: the registry does not answer, or too slowly. Next: it is tried again by itself.
	ReasonRegistryUnreachable Reason = "RegistryUnreachable"
	// ReasonImageDigestMismatch: what came is not what its digest says. Next: push the image again; nothing of it was kept.
	ReasonImageDigestMismatch Reason = "ImageDigestMismatch"
	// ReasonImageNotDisk: the image holds no disk, kernel or initrd where one was expected. Next: use a containerDisk.
	ReasonImageNotDisk Reason = "ImageNotDisk"
	// ReasonImageUnsafe: the disk's header reaches outside of it (backing file, data file), is encrypted or malformed.
	// Next: flatten it with `qemu-img convert`.
	ReasonImageUnsafe Reason = "ImageUnsafe"
	// ReasonImageTooLarge: the image is larger than the administrator allows. Next: shrink it or raise the limit.
	ReasonImageTooLarge Reason = "ImageTooLarge"
	// ReasonDiskTooSmall: the disk's size is less than its image's. Next: give it a larger size, or none.
	ReasonDiskTooSmall Reason = "DiskTooSmall"
	// ReasonDiskMismatch: the spec of a disk changed just when it was made, and is not what the disk is. Next: change it
	// back, or add a disk with another name.
	ReasonDiskMismatch Reason = "DiskMismatch"
	// ReasonStoreFull: the node's disk is full. Next: free space; it is tried again by itself.
	ReasonStoreFull Reason = "StoreFull"
	// ReasonStoreFailed: the node's disk fails. Next: read the node's kernel log, mend the disk; it is tried again by itself.
	ReasonStoreFailed Reason = "StoreFailed"
	// ReasonSecretMissing: a Secret that the VM names, or a key in it, does not exist. Next: create it.
	ReasonSecretMissing Reason = "SecretMissing"
	// ReasonSeedTooLarge: the cloud-init data is larger than a seed can be. Next: shorten it.
	ReasonSeedTooLarge Reason = "SeedTooLarge"
	// ReasonDisksRemoved: the VM is being deleted and its node-local disks are gone. Next: the finalizer goes.
	ReasonDisksRemoved Reason = "DisksRemoved"
)

// Reasons of the condition Running, and of lastExit.
const (
	// ReasonStarting: the guest is being prepared. Next: nothing to do.
	ReasonStarting Reason = "Starting"
	// ReasonStarted: the guest's vCPUs run.
	ReasonStarted Reason = "Started"
	// ReasonPaused: the guest is suspended as the spec asks. Next: set state to Running.
	ReasonPaused Reason = "Paused"
	// ReasonStopping: the guest was asked to power off. Next: it does, or is ended when its grace period is over.
	ReasonStopping Reason = "Stopping"
	// ReasonNotRunning: there is no guest.
	ReasonNotRunning Reason = "NotRunning"
	// ReasonPoweredOff: the guest powered itself off.
	ReasonPoweredOff Reason = "PoweredOff"
	// ReasonGuestPanicked: the guest's kernel reported a panic. Next: read its console with kubectl logs --previous.
	ReasonGuestPanicked Reason = "GuestPanicked"
	// ReasonOOMKilled: QEMU was over the berth's memory limit. Next: raise memory.
	ReasonOOMKilled Reason = "OOMKilled"
	// ReasonQEMUFailed: QEMU ended by itself or by a signal. Next: the message holds the end of its log.
	ReasonQEMUFailed Reason = "QEMUFailed"
	// ReasonForcedOff: the guest did not power off within its grace period and was ended.
	ReasonForcedOff Reason = "ForcedOff"
	// ReasonStartupProbeFailed: the guest did not pass its startupProbe in time and was ended.
	ReasonStartupProbeFailed Reason = "StartupProbeFailed"
	// ReasonDiskBlocked: QEMU halted the guest because its disk is full or fails. Next: free space, or read the node's kernel log; it
	// is resumed by itself.
	ReasonDiskBlocked Reason = "DiskBlocked"
	// ReasonDestroyed: somebody other than Berth ended the domain.
	ReasonDestroyed Reason = "Destroyed"
	// ReasonSuspended: somebody other than Berth suspended the domain, and it was resumed. Next: set state to Paused to pause it.
	ReasonSuspended Reason = "Suspended"
	// ReasonShimLost: the berth's container ended, and the guest with it.
	ReasonShimLost Reason = "ShimLost"
	// ReasonLibvirtUnreachable: libvirtd does not answer; the guest may run. Next: start or unblock libvirtd.
	ReasonLibvirtUnreachable Reason = "LibvirtUnreachable"
	// ReasonLibvirtRefused: libvirt refused the domain. Next: the message is libvirt's own.
	ReasonLibvirtRefused Reason = "LibvirtRefused"
	// ReasonDomainNameTaken: a domain that is not ours has the guest's name. Next: rename or undefine it on the host.
	ReasonDomainNameTaken Reason = "DomainNameTaken"
	// ReasonKVMUnavailable: /dev/kvm cannot be used. Next: enable virtualisation, or set acceleration to Emulation.
	ReasonKVMUnavailable Reason = "KVMUnavailable"
	// ReasonStateDirClosed: QEMU's own user cannot reach its domain's directory. Next: let others pass through /var/lib/libvirt/qemu.
	ReasonStateDirClosed Reason = "StateDirClosed"
	// ReasonBerthAltered: admission changed the berth in a way that breaks its promises. Next: exempt it from that webhook.
	ReasonBerthAltered Reason = "BerthAltered"
	// ReasonBerthOutdated: the spec changed since the berth was made; it is replaced before the guest starts again.
	ReasonBerthOutdated Reason = "BerthOutdated"
	// ReasonPlacementFailed: QEMU could not be moved into the berth's cgroup. Next: it is tried again by itself.
	ReasonPlacementFailed Reason = "PlacementFailed"
	// ReasonNetworkFailed: the guest's tap could not be wired into the berth. Next: it is tried again by itself.
	ReasonNetworkFailed Reason = "NetworkFailed"
	// ReasonRuntimeUnreachable: the container runtime does not answer. Next: start it; it is tried again by itself.
	ReasonRuntimeUnreachable Reason = "RuntimeUnreachable"
	// ReasonInternalError: a bug of ours. Next: report it with the message.
	ReasonInternalError Reason = "InternalError"
)

// Reasons of the conditions GuestAgentConnected, Ready and UpToDate.
const (
	// ReasonGuestAgentConnected: the guest agent answers.
	ReasonGuestAgentConnected Reason = "GuestAgentConnected"
	// ReasonGuestAgentNotConnected: no guest agent has connected. Next: install qemu-guest-agent in the guest, if you want it.
	ReasonGuestAgentNotConnected Reason = "GuestAgentNotConnected"
	// ReasonReady: the guest runs and its probes pass.
	ReasonReady Reason = "Ready"
	// ReasonProbesFailing: the guest runs and a probe does not pass.
	ReasonProbesFailing Reason = "ProbesFailing"
	// ReasonUpToDate: the guest was started from the spec as it is.
	ReasonUpToDate Reason = "UpToDate"
	// ReasonChangesPending: the spec changed since the guest was started; pendingChanges take effect at its next restart. Next: change restartedAt.
	ReasonChangesPending Reason = "ChangesPending"
)

// Reasons of a VirtualMachineHost's conditions.
const (
	// ReasonHostReady: guests can start on this host.
	ReasonHostReady Reason = "HostReady"
	// ReasonLibvirtTooOld: libvirt or QEMU is older than Berth needs. Next: upgrade it.
	ReasonLibvirtTooOld Reason = "LibvirtTooOld"
	// ReasonKernelTooOld: the kernel is older than 5.6. Next: upgrade it.
	ReasonKernelTooOld Reason = "KernelTooOld"
	// ReasonMisconfigured: guests start, but a promise is weaker than it could be. Next: the message lists what to set.
	ReasonMisconfigured Reason = "Misconfigured"
	// ReasonWellConfigured: nothing to mend.
	ReasonWellConfigured Reason = "WellConfigured"
)
