package v1alpha1

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Where a reason can stand, besides the conditions of a VirtualMachine.
const (
	InLastExit = "lastExit"             // status.lastExit of a VirtualMachine
	InHost     = "VirtualMachineHost"   // conditions and problems of a VirtualMachineHost
	InImage    = "VirtualMachineImage"  // conditions of a VirtualMachineImage, beside the reasons of DisksReady
	InCommit   = "VirtualMachineCommit" // conditions of a VirtualMachineCommit, beside the reasons of DisksReady and Running
)

// Reasons are all, sorted.
func Reasons() []Reason { return slices.Sorted(maps.Keys(reasons)) }

// In lists where the reason can stand: condition types of a VirtualMachine, InLastExit, InHost, InImage, InCommit; nothing for Events
// alone. Ready and Stalled repeat the reasons of other conditions besides.
func (r Reason) In() []string { return reasons[r].in }

// StandsIn tells whether In has that place.
func (r Reason) StandsIn(place string) bool { return slices.Contains(reasons[r].in, place) }

// ToldIn is the first of In, where a failure with this reason is told that may be of more than one; "" if In is empty.
func (r Reason) ToldIn() string {
	if in := reasons[r].in; len(in) > 0 {
		return in[0]
	}
	return ""
}

// Event is the type of the Event that tells the reason when it is new: Warning where something or somebody has to act,
// Normal for what happened as it should, "" for none.
func (r Reason) Event() string {
	if r.IsUsers() {
		return warning
	}
	return reasons[r].event
}

// IsWarning tells whether something or somebody has to act.
func (r Reason) IsWarning() bool { return r.Event() == warning }

// IsUsers tells whether the VirtualMachine's user has to act: nothing goes on without.
func (r Reason) IsUsers() bool { return reasons[r].event == user }

// When says in sentences when the reason is given.
func (r Reason) When() string { return reasons[r].when }

// Next says in sentences what to do then, "" where all is as it should be.
func (r Reason) Next() string { return reasons[r].next }

type reasonInfo struct {
	in         []string
	event      string
	when, next string
}

// What is user is a warning.
const normal, warning, user = corev1.EventTypeNormal, corev1.EventTypeWarning, "User"

func in(places ...string) []string { return places }

// reasons has an entry for each constant of type Reason; a test holds the two together.
var reasons = map[Reason]reasonInfo{
	ReasonScheduled:              {in(ConditionScheduled), "", "The berth has a node.", ""},
	ReasonNotWanted:              {in(ConditionScheduled), "", "The spec asks for no guest, so there is no berth.", "Set state to Running to start it."},
	ReasonPending:                {in(ConditionScheduled, ConditionReady), "", "The berth has not been scheduled, or the agent of its node has not reported yet.", "Wait. If it stays, ask `kubectl describe pod` about the berth, which has the VM's name, and `kubectl get vmhost` about its node."},
	ReasonUnschedulable:          {in(ConditionScheduled, InCommit), warning, "No node takes the berth; the message is the scheduler's.", "Lower the request, or change the nodes or what the spec asks of them."},
	ReasonNoHost:                 {in(ConditionScheduled), warning, "No node of the cluster is a usable KVM host.", "Look at `kubectl get vmhost`, and correct what it says."},
	ReasonBerthRefused:           {in(ConditionScheduled, InCommit), warning, "The API server refused the berth, or a claim of volumeClaimTemplates: quota, admission or Pod Security.", "Read in the message which rule it was, and change the spec or the rule."},
	ReasonPodNameTaken:           {in(ConditionScheduled), user, "A pod that is not Berth's has the VM's name.", "Delete that pod, or give the VM another name."},
	ReasonNodeLost:               {in(ConditionScheduled), warning, "The berth's node does not answer; the guest may still run.", "Bring the node back. If it is surely off, delete its Node object or taint it node.kubernetes.io/out-of-service."},
	ReasonClaimMissing:           {in(ConditionScheduled), user, "A PersistentVolumeClaim that a disk names does not exist, or is being deleted.", "Create it, or correct the disk's claimName."},
	ReasonClaimLost:              {in(ConditionScheduled), user, "A disk's PersistentVolumeClaim is Lost: its PersistentVolume does not exist any more.", "Restore the PersistentVolume, or give the disk another claim."},
	ReasonClaimInUse:             {in(ConditionScheduled), user, "Another VirtualMachine has a disk's claim, and the two do not agree to share it. The message names it.", "Stop or delete that VirtualMachine; this one starts then. To use one claim by both, set access of the disk to Shared or ReadOnly in both."},
	ReasonClaimNameTaken:         {in(ConditionScheduled), user, "A PersistentVolumeClaim that was not made for this VirtualMachine has the name of one that is to be made from volumeClaimTemplates.", "Rename the template, delete that claim, or label it vm.berth.dev/name with the VM's name to hand it over."},
	ReasonClaimAccess:            {in(ConditionScheduled), user, "A disk's claim cannot be used as the disk asks: it may only be read, is not ReadWriteMany, is another disk's already, or is a Block volume, which has a size of its own.", "Change the disk's access or size, or give it another claim."},
	ReasonBerthVanished:          {in(ConditionScheduled), warning, "Somebody removed the berth and its finalizer before its guest was proven gone.", "Wait for the agent of its node, which will report. If the node is gone, do as for NodeLost."},
	ReasonDisksReady:             {in(ConditionDisksReady), "", "Every disk exists on the node.", ""},
	ReasonPullingImage:           {in(ConditionDisksReady), normal, "An image is being pulled to the node, or waits for its turn; the message shows progress.", "Wait. If the progress in the message stands still, check the registry and the node's way to it."},
	ReasonImageInvalid:           {in(ConditionDisksReady), user, "The image reference cannot be read.", "Write it as registry/repository:tag, registry/repository@sha256:… or https://host/file."},
	ReasonImageNotFound:          {in(ConditionDisksReady), user, "The registry has no such image, or none for the node's architecture.", "Correct the reference, or push the image."},
	ReasonImageUnauthorized:      {in(ConditionDisksReady), user, "The registry refused the credentials, or wants some.", "Correct imagePullSecrets and the Secrets that it names."},
	ReasonRegistryUnreachable:    {in(ConditionDisksReady), warning, "The registry does not answer, or too slowly; the pull is tried again.", "Check the registry, and the node's way to it, if this lasts."},
	ReasonImageDigestMismatch:    {in(ConditionDisksReady), user, "What the registry or web server sent does not have the digest that it should; nothing of it was kept.", "Push the image again; correct the checksum behind a URL, or serve that file again."},
	ReasonImageNotDisk:           {in(ConditionDisksReady), user, "The image holds no disk, kernel or initrd where one was expected.", "Use a containerDisk, or correct the path."},
	ReasonImageUnsafe:            {in(ConditionDisksReady), user, "The disk's header names other files (backing file, data file), is encrypted or malformed.", "Flatten the disk with `qemu-img convert`, and push it again."},
	ReasonImageTooLarge:          {in(ConditionDisksReady), user, "The image is larger than the administrator allows, or a kernel or initrd in it larger than Berth does, or than the guest's memory.", "Shrink it, give the guest more memory, or ask the administrator for a higher limit."},
	ReasonDiskTooSmall:           {in(ConditionDisksReady), user, "The disk's size is less than its image's, or it has none and its image is larger than the administrator allows then.", "Give the disk a size, and one of at least its image's."},
	ReasonDiskMismatch:           {in(ConditionDisksReady), user, "The disk was made from another spec than the present one.", "Change the disk's spec back, or add a disk with another name."},
	ReasonDiskMissing:            {in(ConditionDisksReady), user, "A disk that was made on the node, and is to be kept, is not in its store any more. The guest is not started, and the disk is not made again.", "Mount the file system of the node's store, or restore the disk. To start without its data, give the disk another name in spec.disks, or delete the VM and create it again."},
	ReasonStoreFull:              {in(ConditionDisksReady, ConditionRunning, InHost), warning, "The node's disk is full, or an image would take what is kept free for guests; what waits is tried again.", "Free space on the node."},
	ReasonStoreFailed:            {in(ConditionDisksReady, ConditionRunning, InHost), warning, "The node's disk fails, or is not the one that the node's store was on; what waits for it is tried again.", "Read the node's kernel log, and repair or replace the disk; or mount the store's file system."},
	ReasonSecretMissing:          {in(ConditionDisksReady), user, "A Secret that the VM names, or a key in it, does not exist.", "Create it."},
	ReasonSeedTooLarge:           {in(ConditionDisksReady), user, "The cloud-init data is larger than a seed can be.", "Shorten it."},
	ReasonClaimPending:           {in(ConditionDisksReady), "", "The capacity of a disk's claim is not known yet.", "Wait. If it stays, ask `kubectl describe pvc` about the claim."},
	ReasonVolumeMissing:          {in(ConditionDisksReady), warning, "A claim's volume is not mounted in the berth, or is not what it was mounted as.", "Read in the message which; change restartedAt to get a new berth. If it comes again, exempt pods with the label vm.berth.dev/name from the webhook or policy that changes them."},
	ReasonVolumeUnsafe:           {in(ConditionDisksReady), user, "What is on the volume is no raw disk that QEMU may have: disk.img is a link, no regular file, or a qcow2.", "Put a raw disk there as the regular file disk.img, such as by `qemu-img convert -O raw`."},
	ReasonVolumeNotWritable:      {in(ConditionDisksReady), user, "QEMU's user and group cannot write to the claim's volume or to its disk.img; the message has owner and mode.", "Let the volume's group write (`chgrp`, `chmod g+w`), or use a storage driver that honours fsGroup."},
	ReasonVolumeTooSmall:         {in(ConditionDisksReady), user, "The claim's volume holds less than the disk's size, or than its image.", "Grow the claim, or lower the disk's size."},
	ReasonVolumeInUse:            {in(ConditionDisksReady), warning, "Another guest's QEMU has the volume.", "Wait until that guest is gone; the message says which. Two claims may be of one volume."},
	ReasonSeeding:                {in(ConditionDisksReady), normal, "A blank claim is being written from its image; the message shows progress.", "Wait. If the progress stands still, check the storage."},
	ReasonDisksRemoved:           {in(ConditionDisksReady), "", "The VM is being deleted, and its node-local disks are gone.", "Wait: the VM goes once its berth has gone."},
	ReasonStarting:               {in(ConditionRunning, InHost), "", "The guest is being prepared.", "Wait. If it stays, look at DisksReady, and at the Events of the VM with `kubectl describe vm`."},
	ReasonStarted:                {in(ConditionRunning), normal, "The guest's vCPUs run.", ""},
	ReasonGuestResetLoop:         {in(ConditionRunning), warning, "The guest's vCPUs run, but it has reset five times within 10 minutes; it counts as running again once it has not for 10 minutes. Firmware that finds nothing to boot resets the guest, too.", "Read the guest's console with `kubectl logs`: does it find its disk, and has its kernel enough memory?"},
	ReasonPaused:                 {in(ConditionRunning), "", "The guest is paused, as the spec asks.", "Set state to Running to resume it."},
	ReasonStopping:               {in(ConditionReady), "", "The guest was asked to power off; it is ended when its grace period is over.", "Wait. `kubectl logs` shows what the guest does; terminationGracePeriodSeconds says how long it may take."},
	ReasonNotRunning:             {in(ConditionRunning), "", "There is no guest.", "Look at Scheduled and DisksReady for what it waits for; if state is Stopped, set it to Running."},
	ReasonPoweredOff:             {in(ConditionRunning, InLastExit), normal, "The guest powered itself off.", "Nothing, if it has done its work. If lastExit has another exit code than 0, read its console with `kubectl logs`; change restartedAt to run it once more."},
	ReasonShutDown:               {in(ConditionRunning, InLastExit), normal, "The guest powered off when it was asked to.", "Nothing, if it was meant to stop. Else look at who stopped it, with `kubectl describe pod` and the Events of its node."},
	ReasonGuestPanicked:          {in(ConditionRunning, InLastExit), warning, "The guest's kernel reported a panic.", "Read the guest's console with `kubectl logs --previous`."},
	ReasonOOMKilled:              {in(ConditionRunning, InLastExit), warning, "QEMU exceeded the berth's memory limit and was killed.", "Raise memory.size."},
	ReasonQEMUFailed:             {in(ConditionRunning, InLastExit), warning, "QEMU ended by itself or by a signal.", "Read the end of QEMU's log in the message, and all of it in /var/log/libvirt/qemu on the node."},
	ReasonForcedOff:              {in(ConditionRunning, InLastExit), warning, "The guest did not power off within its grace period and was ended.", "Raise terminationGracePeriodSeconds if the guest needs longer to power off."},
	ReasonStartupProbeFailed:     {in(ConditionRunning, InLastExit), warning, "The guest did not pass its startupProbe in time and was ended.", "Read the guest's console with `kubectl logs --previous`, or give the probe more time."},
	ReasonDiskIOError:            {in(ConditionRunning), warning, "QEMU paused the guest because its disk is full or fails; it is resumed when the disk works again.", "Free space on the node, or read the node's kernel log."},
	ReasonDestroyed:              {in(ConditionRunning, InLastExit), warning, "Somebody other than Berth ended the domain or its QEMU.", "Use state, restartedAt or `kubectl delete` instead of virsh."},
	ReasonPausedExternally:       {in(), warning, "Somebody other than Berth paused the domain, and it was resumed.", "Set state to Paused to pause the guest."},
	ReasonShimLost:               {in(ConditionRunning, InLastExit), warning, "The berth's container ended, and the guest with it.", "Look at the pod with `kubectl describe pod`: who ended its container?"},
	ReasonLibvirtUnreachable:     {in(ConditionRunning, InHost), warning, "libvirtd does not answer; the guest may run.", "Look at libvirtd on the node (`systemctl status libvirtd`), and restart it if it hangs."},
	ReasonLibvirtBusy:            {in(ConditionRunning), normal, "The agent's calls to libvirtd for other guests are not answered yet, so one for this guest waits.", "Wait. If it stays, look in the message for what holds up the calls: QEMUs that do not answer, or domains that start slowly."},
	ReasonLibvirtRefused:         {in(ConditionRunning), warning, "libvirt refused the domain; the message is libvirt's own.", "Change what the message names."},
	ReasonDomainNameTaken:        {in(ConditionRunning), warning, "A domain that is not Berth's has the guest's name or UUID.", "Rename or undefine that domain on the node with virsh, or give the VM another name."},
	ReasonKVMUnavailable:         {in(ConditionRunning, InHost), warning, "/dev/kvm cannot be used.", "Enable virtualisation in the firmware, load kvm_intel or kvm_amd, or set acceleration to Emulation."},
	ReasonStateDirInaccessible:   {in(InHost), warning, "QEMU's own user cannot reach its domain's directory.", "Let others pass through /var/lib/libvirt/qemu (`chmod o+x`)."},
	ReasonBerthMutated:           {in(ConditionScheduled, ConditionRunning), warning, "The berth is not as Berth made it: admission or somebody changed it, or another runtime runs it.", "Exempt pods with the label vm.berth.dev/name from that webhook or policy."},
	ReasonBerthOutdated:          {in(ConditionRunning), "", "The spec changed since the berth was made; it is replaced before the guest starts again.", "Wait for the new berth."},
	ReasonHardwareUnknown:        {in(ConditionRunning), warning, "The VM was first started with a machine type or a layout of devices that its node does not know, or its record there cannot be read.", "Upgrade QEMU or Berth on that node, or restore the record, as the message says."},
	ReasonPlacementFailed:        {in(ConditionRunning), warning, "QEMU could not be moved into the berth's cgroup; it is tried again.", "Read the message and the agent's log if this lasts."},
	ReasonNetworkFailed:          {in(ConditionRunning), warning, "The guest's tap could not be connected to the berth's network; it is tried again.", "Read the message and the agent's log if this lasts."},
	ReasonRuntimeUnreachable:     {in(ConditionRunning), warning, "The container runtime does not answer; it is asked again.", "Look at the container runtime on the node, and start it if it is down."},
	ReasonShimProtocolError:      {in(ConditionRunning, ConditionUpToDate), warning, "The berth's shim did not keep to the agent's protocol; the agent leaves it alone for some minutes at a time.", "Change restartedAt to restart the guest in a new berth. If it comes again, look in the pod for a program that is not Berth's."},
	ReasonInternalError:          {in(ConditionRunning, ConditionDisksReady, InHost), warning, "A bug of Berth's, or a failure that it has no word for; it is tried again.", "Report it with the message."},
	ReasonGuestAgentConnected:    {in(ConditionGuestAgentConnected), "", "The guest agent answers.", ""},
	ReasonGuestAgentNotConnected: {in(ConditionGuestAgentConnected), "", "No guest agent has connected.", "Install qemu-guest-agent in the guest, if you want it."},
	ReasonImageReady:             {in(InImage), "", "Every node that is to have the image has it.", ""},
	ReasonImageResolved:          {in(InImage), "", "It is known what the image's name means.", ""},
	ReasonReady:                  {in(ConditionReady), "", "The guest runs and its probes pass.", ""},
	ReasonEvicted:                {in(ConditionReady), warning, "The guest's pod was evicted (a drain, a preemption, a node that is short of something) before the guest had ended, and restartPolicy Never starts no other.", "Change restartedAt to run the guest once more."},
	ReasonPodDeleted:             {in(ConditionReady), warning, "Somebody deleted the guest's pod before the guest had ended, and restartPolicy Never starts no other.", "Change restartedAt to run the guest once more."},
	ReasonBerthNotStarted:        {in(ConditionReady), warning, "kubelet does not run the berth's container: the shim's image, a volume, the pod's network, or the container itself is in the way. The message is kubelet's.", "Correct what the message names. Of the shim's image, the administrator sets registry, tag and pull Secrets in the chart's values."},
	ReasonProbesFailing:          {in(ConditionReady), "", "The guest runs, and a probe does not pass, or not yet.", "Look at what the guest answers, with `kubectl port-forward` or on its console."},
	ReasonUpToDate:               {in(ConditionUpToDate), "", "The guest was started from the spec as it is.", ""},
	ReasonChangesPending:         {in(ConditionUpToDate), "", "The spec changed; pendingChanges take effect at the next restart.", "Change restartedAt to restart the guest now."},
	ReasonShimOutdated:           {in(ConditionRunning, ConditionUpToDate), "", "The guest needs what its berth's shim, which is older than the node's agent, does not take; it runs without, or with what an older agent gave it. When it starts again, the operator replaces the berth.", "Change restartedAt to restart the guest in a new berth, with a new shim."},
	ReasonClaimNotBlank:          {in(), normal, "A claim with an image had data already, so it was not seeded: its data is used as it is.", "To have the image on it, give the disk a blank claim."},
	ReasonClaimNotGrown:          {in(), warning, "A claim made from volumeClaimTemplates cannot have the request that its template has now. The message is the API server's.", "Use a StorageClass that allows expansion, or set the template's request back."},
	ReasonPulled:                 {in(), normal, "An image has come to the node; the Event tells what was transferred, and how fast.", ""},
	ReasonMediumForced:           {in(), warning, "The guest held a CD-ROM's medium for 10 s when it was to be changed, and it was taken by force.", "Unmount a CD-ROM in the guest before its image changes. Programs that still read the old one get errors: unmount it there, and mount the new one."},
	ReasonTTLExpired:             {in(), normal, "The guest has ended for good, as long ago as ttlSecondsAfterFinished says, and its VM was deleted, with its disks.", ""},
	ReasonCommitted:              {in(InCommit), normal, "The registry has the image of the disk.", ""},
	ReasonCommitting:             {in(ConditionDisksReady, InCommit), "", "A disk of the VM becomes an image. While the disk of a stopped VM is read, the guest is not started.", "Wait; `kubectl get vmcommit` shows how far it is. To give it up, delete the VirtualMachineCommit."},
	ReasonNothingToCommit:        {in(InCommit), warning, "The VM does not exist, has no disk of that name, has not made it on any node yet, or the disk is a CD-ROM, or a stopped guest's claim.", "Start the guest, and the commit goes on; the message says what it waits for. To correct a name, or if the commit has failed, create another."},
	ReasonNotQuiesced:            {in(InCommit), warning, "The guest was to hold its writes while the disk is taken, and its guest agent did not have it do so.", "Install qemu-guest-agent in the guest, stop the guest, or set quiesce to IfPossible; then create another commit."},
	ReasonPushFailed:             {in(InCommit), warning, "The registry did not take the image.", "Read the message, check the registry and the node's way to it, and create another commit."},
	ReasonHostReady:              {in(InHost), "", "Guests can start on this host.", ""},
	ReasonLibvirtTooOld:          {in(InHost), warning, "libvirt or QEMU is missing, or older than Berth needs.", "Install or upgrade it."},
	ReasonKernelTooOld:           {in(InHost), warning, "The kernel is older than 5.6.", "Upgrade it."},
	ReasonMisconfigured:          {in(InHost), warning, "Guests start, but a promise is weaker than it could be.", "Set what problems in the host's status lists."},
	ReasonUnconfined:             {in(InHost), warning, "QEMU is not confined on this host, by seccomp, AppArmor or SELinux, as the administrator requires.", "Set what problems in the host's status lists, or agent.requireConfinement in the chart's values to false."},
	ReasonMountsNotShared:        {in(ConditionDisksReady, InHost), warning, "The host's root mount is not shared, or its kernel is older than 5.12, so volumes cannot be handed on to QEMU. Guests with claims do not start.", "Run `mount --make-rshared /` at boot, before kubelet and libvirtd, or upgrade the kernel."},
	ReasonWellConfigured:         {in(InHost), "", "Nothing on the host is misconfigured.", ""},
}
