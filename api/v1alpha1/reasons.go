package v1alpha1

// Reason is one word for why something is as it is. Conditions, Events and
// metrics use the same word, and it never changes its meaning once released.
// What there is to know of each stands in reasons_table.go.
//
// +kubebuilder:validation:MaxLength=64
type Reason string

// The reasons, by the condition that has each first.
const (
	// Reasons of the condition Scheduled.

	ReasonScheduled      Reason = "Scheduled"      // the berth has a node
	ReasonNotWanted      Reason = "NotWanted"      // the spec asks for no guest
	ReasonPending        Reason = "Pending"        // the berth is not scheduled, or its agent has not answered yet
	ReasonUnschedulable  Reason = "Unschedulable"  // no node takes the berth
	ReasonNoHost         Reason = "NoHost"         // no node is a usable KVM host
	ReasonBerthRefused   Reason = "BerthRefused"   // the API server refused the berth
	ReasonPodNameTaken   Reason = "PodNameTaken"   // another pod has the VM's name
	ReasonNodeLost       Reason = "NodeLost"       // the node does not answer
	ReasonClaimMissing   Reason = "ClaimMissing"   // a disk's claim does not exist
	ReasonClaimLost      Reason = "ClaimLost"      // a disk's claim has lost its volume
	ReasonClaimInUse     Reason = "ClaimInUse"     // another VM has a disk's claim
	ReasonClaimNameTaken Reason = "ClaimNameTaken" // a claim that is not this VM's has a template's name
	ReasonClaimAccess    Reason = "ClaimAccess"    // the claim cannot be used as the disk asks
	ReasonBerthVanished  Reason = "BerthVanished"  // the berth was removed by force

	// Reasons of the condition DisksReady.

	ReasonDisksReady          Reason = "DisksReady"          // every disk exists on the node
	ReasonPullingImage        Reason = "PullingImage"        // an image is being pulled
	ReasonImageInvalid        Reason = "ImageInvalid"        // the image reference cannot be read
	ReasonImageNotFound       Reason = "ImageNotFound"       // the registry has no such image
	ReasonImageUnauthorized   Reason = "ImageUnauthorized"   // the registry refused access
	ReasonRegistryUnreachable Reason = "RegistryUnreachable" // the registry does not answer
	ReasonImageDigestMismatch Reason = "ImageDigestMismatch" // the content has another digest
	ReasonImageNotDisk        Reason = "ImageNotDisk"        // the image holds no disk
	ReasonImageUnsafe         Reason = "ImageUnsafe"         // the disk's header is refused
	ReasonImageTooLarge       Reason = "ImageTooLarge"       // the image is over the limit
	ReasonDiskTooSmall        Reason = "DiskTooSmall"        // the disk is smaller than its image
	ReasonDiskMismatch        Reason = "DiskMismatch"        // the disk was made from another spec
	ReasonDiskMissing         Reason = "DiskMissing"         // a kept disk is not in the node's store
	ReasonStoreFull           Reason = "StoreFull"           // the node's disk is full
	ReasonStoreFailed         Reason = "StoreFailed"         // the node's disk fails
	ReasonSecretMissing       Reason = "SecretMissing"       // a Secret, or a key of it, is missing
	ReasonSeedTooLarge        Reason = "SeedTooLarge"        // the cloud-init data is too large
	ReasonClaimPending        Reason = "ClaimPending"        // a claim's capacity is not known yet
	ReasonVolumeMissing       Reason = "VolumeMissing"       // a claim's volume is not in the berth
	ReasonVolumeUnsafe        Reason = "VolumeUnsafe"        // what is on the volume is refused
	ReasonVolumeNotWritable   Reason = "VolumeNotWritable"   // QEMU cannot write to the volume
	ReasonVolumeTooSmall      Reason = "VolumeTooSmall"      // the volume holds less than the disk
	ReasonVolumeInUse         Reason = "VolumeInUse"         // another QEMU has the volume
	ReasonSeeding             Reason = "Seeding"             // a claim is written from its image
	ReasonDisksRemoved        Reason = "DisksRemoved"        // the disks of a deleted VM are gone

	// Reasons of the condition Running, and of lastExit.

	ReasonStarting             Reason = "Starting"             // the guest is being prepared
	ReasonStarted              Reason = "Started"              // the vCPUs run
	ReasonGuestResetLoop       Reason = "GuestResetLoop"       // the guest resets again and again
	ReasonPaused               Reason = "Paused"               // the guest is paused as asked
	ReasonStopping             Reason = "Stopping"             // the guest was asked to power off
	ReasonNotRunning           Reason = "NotRunning"           // there is no guest
	ReasonPoweredOff           Reason = "PoweredOff"           // the guest powered itself off
	ReasonShutDown             Reason = "ShutDown"             // the guest powered off when it was asked to
	ReasonGuestPanicked        Reason = "GuestPanicked"        // the guest's kernel panicked
	ReasonOOMKilled            Reason = "OOMKilled"            // QEMU exceeded the memory limit
	ReasonQEMUFailed           Reason = "QEMUFailed"           // QEMU failed or was killed
	ReasonForcedOff            Reason = "ForcedOff"            // the guest was ended after its grace period
	ReasonStartupProbeFailed   Reason = "StartupProbeFailed"   // the startupProbe did not pass in time
	ReasonDiskIOError          Reason = "DiskIOError"          // QEMU paused the guest on an I/O error
	ReasonDestroyed            Reason = "Destroyed"            // somebody else ended the domain
	ReasonPausedExternally     Reason = "PausedExternally"     // somebody else paused the domain
	ReasonShimLost             Reason = "ShimLost"             // the berth's container ended first
	ReasonLibvirtUnreachable   Reason = "LibvirtUnreachable"   // libvirtd does not answer
	ReasonLibvirtBusy          Reason = "LibvirtBusy"          // calls for other guests are in the way
	ReasonLibvirtRefused       Reason = "LibvirtRefused"       // libvirt refused the domain
	ReasonDomainNameTaken      Reason = "DomainNameTaken"      // another domain has the guest's name
	ReasonKVMUnavailable       Reason = "KVMUnavailable"       // /dev/kvm cannot be used
	ReasonStateDirInaccessible Reason = "StateDirInaccessible" // QEMU's user cannot reach its directory
	ReasonBerthMutated         Reason = "BerthMutated"         // the berth is not as it was made
	ReasonBerthOutdated        Reason = "BerthOutdated"        // the berth is to be replaced
	ReasonHardwareUnknown      Reason = "HardwareUnknown"      // the node lacks the machine type or layout
	ReasonPlacementFailed      Reason = "PlacementFailed"      // QEMU is not in the berth's cgroup
	ReasonNetworkFailed        Reason = "NetworkFailed"        // the tap is not connected
	ReasonRuntimeUnreachable   Reason = "RuntimeUnreachable"   // the container runtime does not answer
	ReasonShimProtocolError    Reason = "ShimProtocolError"    // the shim does not keep to the protocol
	ReasonInternalError        Reason = "InternalError"        // a bug of Berth's

	// Reasons of the conditions GuestAgentConnected, Ready and UpToDate.

	ReasonGuestAgentConnected    Reason = "GuestAgentConnected"    // the guest agent answers
	ReasonGuestAgentNotConnected Reason = "GuestAgentNotConnected" // no guest agent answers
	ReasonReady                  Reason = "Ready"                  // the guest runs and its probes pass
	ReasonImageReady             Reason = "ImageReady"             // all nodes that are to have the image have it
	ReasonImageResolved          Reason = "ImageResolved"          // it is known what the image's name means
	ReasonEvicted                Reason = "Evicted"                // the pod was evicted, and a guest under Never is not started again
	ReasonPodDeleted             Reason = "PodDeleted"             // the pod was deleted, and a guest under Never is not started again
	ReasonBerthNotStarted        Reason = "BerthNotStarted"        // kubelet does not run the berth's container
	ReasonProbesFailing          Reason = "ProbesFailing"          // a probe does not pass
	ReasonUpToDate               Reason = "UpToDate"               // the guest has the spec as it is
	ReasonChangesPending         Reason = "ChangesPending"         // pendingChanges wait for a restart
	ReasonShimOutdated           Reason = "ShimOutdated"           // the shim cannot do what the guest needs

	// Reasons of Events alone.

	ReasonTTLExpired    Reason = "TTLExpired"    // the VM of a finished guest was deleted
	ReasonClaimNotBlank Reason = "ClaimNotBlank" // a claim with an image had data, and was not seeded
	ReasonClaimNotGrown Reason = "ClaimNotGrown" // a claim does not take its template's request
	ReasonPulled        Reason = "Pulled"        // an image has come to the node
	ReasonMediumForced  Reason = "MediumForced"  // a CD-ROM's medium was taken from the guest

	// Reasons of a VirtualMachineCommit's conditions.

	ReasonCommitted       Reason = "Committed"       // the registry has the image
	ReasonCommitting      Reason = "Committing"      // a disk becomes an image
	ReasonNothingToCommit Reason = "NothingToCommit" // the VM or its disk does not exist, or is no disk to commit
	ReasonNotQuiesced     Reason = "NotQuiesced"     // the guest did not hold its writes, and had to
	ReasonPushFailed      Reason = "PushFailed"      // the registry did not take the image

	// Reasons of a VirtualMachineHost's conditions.

	ReasonHostReady       Reason = "HostReady"       // guests can start on this host
	ReasonLibvirtTooOld   Reason = "LibvirtTooOld"   // libvirt or QEMU is too old or missing
	ReasonKernelTooOld    Reason = "KernelTooOld"    // the kernel is older than 5.6
	ReasonMisconfigured   Reason = "Misconfigured"   // a promise is weaker than it could be
	ReasonUnconfined      Reason = "Unconfined"      // QEMU is not confined on this host as the administrator requires
	ReasonMountsNotShared Reason = "MountsNotShared" // volumes cannot be handed on to QEMU
	ReasonWellConfigured  Reason = "WellConfigured"  // nothing is misconfigured
)
