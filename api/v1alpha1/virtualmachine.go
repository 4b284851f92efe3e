package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VirtualMachine is a KVM guest. It runs in a berth: a pod of the same name, in
// whose container's cgroup and network its QEMU lives.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=vm;bvm,categories=all
// +kubebuilder:selectablefield:JSONPath=`.status.nodeName`
// +kubebuilder:selectablefield:JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.status.nodeName`
// +kubebuilder:printcolumn:name="IP",type=string,JSONPath=`.status.addresses[0]`
// +kubebuilder:printcolumn:name="CPU",type=integer,JSONPath=`.status.vcpus`
// +kubebuilder:printcolumn:name="Memory",type=string,JSONPath=`.spec.memory.size`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:printcolumn:name="Image",type=string,priority=1,JSONPath=`.status.image`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 63 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')",message="metadata.name must be a DNS label of at most 63 characters (lower case letters, digits, '-'): it is the guest's host name",fieldPath=".metadata"
type VirtualMachine struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// spec is what the user wants. Berth never writes it.
	// +required
	Spec VirtualMachineSpec `json:"spec"`
	// status is what Berth sees.
	// +optional
	// +kubebuilder:default={"observedGeneration":-1}
	Status VirtualMachineStatus `json:"status,omitzero"`
}

// VirtualMachineList is a list of VirtualMachines.
//
// +kubebuilder:object:root=true
type VirtualMachineList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VirtualMachine `json:"items"`
}

// State is what a VirtualMachine should be doing.
//
// +kubebuilder:validation:Enum=Running;Stopped;Paused
type State string

// The states that a user can ask for.
const (
	StateRunning State = "Running"
	StateStopped State = "Stopped"
	StatePaused  State = "Paused"
)

// RestartPolicy says what follows when the guest stops by itself.
//
// +kubebuilder:validation:Enum=Always;OnFailure;Never
type RestartPolicy string

// The restart policies, with a pod's meaning.
const (
	RestartAlways    RestartPolicy = "Always"
	RestartOnFailure RestartPolicy = "OnFailure"
	RestartNever     RestartPolicy = "Never"
)

// VirtualMachineSpec is what the user wants of a guest.
//
// +kubebuilder:validation:XValidation:rule="has(self.kernel) || has(self.disks) && size(self.disks) > 0",message="the guest has nothing to boot from: give disks or kernel"
// +kubebuilder:validation:XValidation:rule="!(self.state == 'Paused' && has(self.livenessProbe))",message="a paused guest cannot answer its livenessProbe and would be restarted: remove the probe, or use state Stopped"
// +kubebuilder:validation:XValidation:rule="!has(self.disks) || self.disks.all(d, self.disks.exists_one(e, e.name == d.name))",message="disks need different names"
// +kubebuilder:validation:XValidation:rule="!has(self.disks) || self.disks.all(d, !has(d.persistentVolumeClaim) || !has(d.persistentVolumeClaim.templateName) || has(self.volumeClaimTemplates) && self.volumeClaimTemplates.exists(t, t.metadata.name == d.persistentVolumeClaim.templateName))",message="a disk's persistentVolumeClaim.templateName must be the metadata.name of one of volumeClaimTemplates"
// +kubebuilder:validation:XValidation:rule="!has(self.disks) || self.disks.all(d, !has(d.persistentVolumeClaim) || self.disks.exists_one(e, has(e.persistentVolumeClaim) && e.persistentVolumeClaim == d.persistentVolumeClaim))",message="two disks have the same claim: give each its own"
// +kubebuilder:validation:XValidation:rule="!has(self.disks) || self.disks.all(d, self.disks.exists_one(e, (has(e.serial) ? e.serial : e.name) == (has(d.serial) ? d.serial : d.name)))",message="two disks have the same serial number, which is the name of one without serial: give each its own"
// +kubebuilder:validation:XValidation:rule="!has(self.disks) || self.disks.filter(d, has(d.bus) ? d.bus == 'SATA' : has(d.type) && d.type == 'CDROM').size() <= 6",message="at most 6 disks are on SATA, and CD-ROMs without bus are: set bus of others to SCSI, or of disks to Virtio"
// +kubebuilder:validation:XValidation:rule="!has(self.removeDisks) || !has(self.disks) || self.disks.all(d, !(d.name in self.removeDisks))",message="removeDisks names a disk that the guest has: take it out of disks, or out of removeDisks",fieldPath=".removeDisks"
// +kubebuilder:validation:XValidation:rule="!(self.restartPolicy == 'Always' && has(self.ttlSecondsAfterFinished))",message="a guest that is always restarted never finishes: set restartPolicy to OnFailure or Never",fieldPath=".ttlSecondsAfterFinished"
// +kubebuilder:validation:XValidation:rule="!has(self.ignition) || !has(self.cloudInit) && !has(self.sshAuthorizedKeys)",message="a guest with Ignition reads neither cloudInit nor sshAuthorizedKeys: put users and their keys into its configuration (passwd.users)",fieldPath=".ignition"
type VirtualMachineSpec struct {
	// state is what the guest should be doing: Running, Stopped (no guest, no berth, node-local disks kept) or
	// Paused (vCPUs halted, memory kept).
	// +optional
	// +kubebuilder:default=Running
	State State `json:"state,omitempty"`
	// restartPolicy is what follows when the guest stops by itself, as a pod's: Always, OnFailure (its exit code is not
	// 0: it gave another, it panicked or QEMU failed) or Never. kubelet restarts it in place, with a growing delay.
	// +optional
	// +kubebuilder:default=Always
	RestartPolicy RestartPolicy `json:"restartPolicy,omitempty"`
	// restartedAt restarts the guest once, gracefully, whenever it changes. Any text does; a time stamp is usual.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RestartedAt string `json:"restartedAt,omitempty"`
	// ttlSecondsAfterFinished is after how many seconds the VirtualMachine is deleted, with its disks, once its guest has ended
	// for good (status.ended). By default it is kept. Only with restartPolicy OnFailure or Never.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=31536000
	TTLSecondsAfterFinished *int32 `json:"ttlSecondsAfterFinished,omitempty"`
	// terminationGracePeriodSeconds is how long the guest may take to power off before it is ended, in seconds.
	// +optional
	// +kubebuilder:default=60
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=86400
	TerminationGracePeriodSeconds *int64 `json:"terminationGracePeriodSeconds,omitempty"`
	// cpu is the guest's virtual processors.
	// +optional
	// +kubebuilder:default={cores: 1, sockets: 1, threads: 1, model: "host-model"}
	CPU CPU `json:"cpu,omitzero"`
	// memory is the guest's memory.
	// +required
	Memory Memory `json:"memory"`
	// kernel boots a kernel directly, without a boot loader.
	// +optional
	Kernel *Kernel `json:"kernel,omitempty"`
	// disks are the guest's disks, in boot order.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=12
	Disks []Disk `json:"disks,omitempty"`
	// removeDisks are names of disks that are in disks no longer, and whose data on the node is to be deleted. Without, it is
	// kept for a disk that comes back under its name.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=20
	// +kubebuilder:validation:items:XValidation:rule=`self.matches(r'^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')`,message="removeDisks are names of disks, such as old: lower case letters, digits and '-'"
	RemoveDisks []string `json:"removeDisks,omitempty"`
	// volumeClaimTemplates are what the claims of disks with a templateName are made from, as a StatefulSet's.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	// +kubebuilder:validation:XValidation:rule="self.all(t, self.exists_one(u, u.metadata.name == t.metadata.name))",message="volumeClaimTemplates need different metadata.name"
	VolumeClaimTemplates []VolumeClaimTemplate `json:"volumeClaimTemplates,omitempty"`
	// volumeClaimRetention says whether the claims that were made from volumeClaimTemplates stay when the VirtualMachine is
	// deleted (Retain), for one of the same name to find again, or go with it (Delete).
	// +optional
	// +kubebuilder:default=Retain
	VolumeClaimRetention VolumeClaimRetention `json:"volumeClaimRetention,omitempty"`
	// networks are the guest's network interfaces. An empty list means none.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:default={{name: "default", pod: {}}}
	// +kubebuilder:validation:MaxItems=1
	Networks []Network `json:"networks"`
	// cloudInit configures the guest at its first boot (NoCloud).
	// +optional
	CloudInit *CloudInit `json:"cloudInit,omitempty"`
	// ignition configures the guest at its first boot if its system has Ignition, as Fedora CoreOS and Flatcar do, in place of cloudInit.
	// +optional
	Ignition *Ignition `json:"ignition,omitempty"`
	// sshAuthorizedKeys are public keys that cloud-init lets into the guest's default user.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	// +kubebuilder:validation:items:MaxLength=8192
	// +kubebuilder:validation:items:XValidation:rule=`self.matches(r'^(ssh-(rsa|ed25519|dss)|ecdsa-sha2-nistp(256|384|521)|sk-(ssh-ed25519|ecdsa-sha2-nistp256)@openssh\.com) [A-Za-z0-9+/]+=*( [^\n\r]*)?$')`,message="a key must be a public one as in a .pub file, such as ssh-ed25519 AAAA… name: no private key, no options, one line"
	// +kubebuilder:validation:XValidation:rule="self.map(k, size(k)).sum() <= 16384",message="sshAuthorizedKeys are more than 16Ki in all: put the keys into user data in a Secret, and name it in cloudInit.userDataSecretRef"
	SSHAuthorizedKeys []string `json:"sshAuthorizedKeys,omitempty"`
	// guestTools says whether the guest gets Berth's guest program, for kubectl exec, kubectl cp and exec probes: Offered puts
	// it on a read-only disk labelled BERTH, and cloud-init or a guest agent starts it. A guest that boots a kernel gets no disk.
	// +optional
	// +kubebuilder:default=Offered
	GuestTools GuestTools `json:"guestTools,omitempty"`
	// display gives the guest a screen, which kubectl port-forward to port 5900 shows by VNC. There is none by default: a
	// guest without costs less memory, and has its console.
	// +optional
	Display *Display `json:"display,omitempty"`
	// berth adds metadata to the guest's pod.
	// +optional
	Berth *BerthTemplate `json:"berth,omitempty"`

	// nodeSelector limits the nodes by their labels, as a pod's.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// affinity attracts to and repels from nodes and pods, as a pod's.
	// +optional
	Affinity *corev1.Affinity `json:"affinity,omitempty"`
	// tolerations let the guest onto tainted nodes, as a pod's.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=32
	Tolerations []corev1.Toleration `json:"tolerations,omitempty"`
	// topologySpreadConstraints spread guests over the cluster, as a pod's. Their label selectors see berth.labels.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=8
	TopologySpreadConstraints []corev1.TopologySpreadConstraint `json:"topologySpreadConstraints,omitempty"`
	// priorityClassName is the guest's priority in scheduling and preemption, as a pod's.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PriorityClassName string `json:"priorityClassName,omitempty"`
	// schedulerName is the scheduler to use, as a pod's.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	SchedulerName string `json:"schedulerName,omitempty"`
	// imagePullSecrets are Secrets of type kubernetes.io/dockerconfigjson in the same namespace, used for the
	// images of disks and kernel.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=8
	ImagePullSecrets []LocalReference `json:"imagePullSecrets,omitempty"`
	// imagePullPolicy says what of the node's own images are used, as a pod's does, when a disk is made from an image: never of
	// a disk that exists.
	// +optional
	// +kubebuilder:default=IfNotPresent
	// +kubebuilder:validation:Enum=Always;IfNotPresent;Never
	ImagePullPolicy corev1.PullPolicy `json:"imagePullPolicy,omitempty"`

	// readinessProbe decides whether Services send traffic to the guest, as a pod's. It counts while the guest runs.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.terminationGracePeriodSeconds)",message="a readinessProbe ends no guest: leave its terminationGracePeriodSeconds out"
	ReadinessProbe *Probe `json:"readinessProbe,omitempty"`
	// livenessProbe restarts the guest when it fails, as a pod's. It counts while the guest runs. Its
	// terminationGracePeriodSeconds can only be less than the spec's.
	// +optional
	LivenessProbe *Probe `json:"livenessProbe,omitempty"`
	// startupProbe holds the other probes back until it passes once, and restarts the guest when it does not pass in
	// initialDelaySeconds + periodSeconds x failureThreshold of running, as a pod's.
	// +optional
	// +kubebuilder:validation:XValidation:rule="!has(self.terminationGracePeriodSeconds)",message="a startupProbe has no terminationGracePeriodSeconds of its own: set that of the spec"
	StartupProbe *Probe `json:"startupProbe,omitempty"`
}

// CPU describes the guest's virtual processors.
//
// +kubebuilder:validation:XValidation:rule="self.cores * self.sockets * self.threads <= 512",message="cores x sockets x threads must be at most 512"
type CPU struct {
	// cores is the number of cores of each socket.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=512
	Cores int32 `json:"cores,omitempty"`
	// sockets is the number of sockets.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=64
	Sockets int32 `json:"sockets,omitempty"`
	// threads is the number of threads of each core.
	// +optional
	// +kubebuilder:default=1
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=8
	Threads int32 `json:"threads,omitempty"`
	// model is the processor the guest sees: host-model (the host's, as libvirt knows it), host-passthrough, or a
	// model of libvirt's by name, such as Skylake-Server. On hosts that emulate, the first two mean all that can be emulated.
	// +optional
	// +kubebuilder:default=host-model
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[A-Za-z0-9][A-Za-z0-9_.+-]*$')`,message="cpu.model must be host-model, host-passthrough or a model of libvirt's by name, such as Skylake-Server"
	Model string `json:"model,omitempty"`
}

// Memory describes the guest's memory.
type Memory struct {
	// size is what the guest sees, such as 2Gi. The berth requests it with the overhead of QEMU.
	// +required
	// +kubebuilder:validation:XValidation:rule="isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('16Mi')) >= 0 && quantity(string(self)).compareTo(quantity('16Ti')) <= 0",message="memory.size must be a quantity from 16Mi to 16Ti, such as 2Gi"
	Size resource.Quantity `json:"size"`
}

// Kernel boots a kernel directly.
type Kernel struct {
	// image is an OCI image that holds the kernel, and the initrd if there is one.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^(([a-zA-Z0-9][a-zA-Z0-9.-]*|\[[a-fA-F0-9:]+\])(:[0-9]+)?/)?[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]{32,})?$')`,message="image is no image reference: write registry/repository:tag or registry/repository@sha256:…, in lower case and without https:// or spaces"
	Image string `json:"image"`
	// kernelPath is the kernel's path in the image, such as /boot/vmlinuz.
	// +optional
	// +kubebuilder:default=/boot/vmlinuz
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^(/[^/\x00-\x1f]+)+$') && !self.split('/').exists(p, p == '..' || p == '.')`,message="kernelPath must be the absolute path of a file in the image, without . or .., such as /boot/vmlinuz"
	KernelPath string `json:"kernelPath,omitempty"`
	// initrdPath is the initial RAM disk's path in the image, such as /boot/initrd.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^(/[^/\x00-\x1f]+)+$') && !self.split('/').exists(p, p == '..' || p == '.')`,message="initrdPath must be the absolute path of a file in the image, without . or .., such as /boot/initrd"
	InitrdPath string `json:"initrdPath,omitempty"`
	// commandLine is handed to the kernel, such as console=ttyS0.
	// +optional
	// +kubebuilder:default="console=ttyS0"
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[^\x00-\x1f]*$')`,message="commandLine must be one line, without tabs and other control characters"
	CommandLine string `json:"commandLine,omitempty"`
}

// Disk is a disk of the guest, or a CD-ROM drive. A disk's source is image, empty or persistentVolumeClaim; a drive has an image or nothing.
//
// +kubebuilder:validation:XValidation:rule="has(self.image) || has(self.virtualMachineImage) || has(self.empty) || has(self.persistentVolumeClaim) || has(self.type) && self.type == 'CDROM'",message="the disk has no source: give image, virtualMachineImage, empty: {} or persistentVolumeClaim, or type: CDROM for an empty drive"
// +kubebuilder:validation:XValidation:rule="!has(self.empty) || !has(self.image) && !has(self.virtualMachineImage) && !has(self.persistentVolumeClaim)",message="an empty disk has no other source: leave empty out, or what is beside it"
// +kubebuilder:validation:XValidation:rule="!has(self.image) || !has(self.virtualMachineImage)",message="give image or virtualMachineImage, and not both"
// +kubebuilder:validation:XValidation:rule="!has(self.empty) || has(self.size)",message="an empty disk needs a size, such as 10Gi"
// +kubebuilder:validation:XValidation:rule="!has(self.persistentVolumeClaim) || !has(self.ephemeral) || !self.ephemeral",message="a claim is never ephemeral: leave ephemeral out, or give empty: {} in place of the claim"
// +kubebuilder:validation:XValidation:rule="has(self.persistentVolumeClaim) || !has(self.access) || self.access == 'ReadWrite'",message="access ReadOnly and Shared are for claims: leave access out, or give persistentVolumeClaim"
// +kubebuilder:validation:XValidation:rule="!has(self.image) && !has(self.virtualMachineImage) || !has(self.access) || self.access == 'ReadWrite'",message="a claim that is shared or only read is seeded by nobody: leave the image or access out"
// +kubebuilder:validation:XValidation:rule="!has(self.type) || self.type != 'CDROM' || !has(self.empty) && !has(self.persistentVolumeClaim) && !has(self.size) && !has(self.access) && !has(self.cache) && !has(self.limits) && !(has(self.ephemeral) && self.ephemeral) && !(has(self.ioThread) && self.ioThread)",message="a CD-ROM has an image or is empty: leave empty, persistentVolumeClaim, size, ephemeral, access, cache, ioThread and limits out"
// +kubebuilder:validation:XValidation:rule="!has(self.type) || self.type != 'CDROM' || !has(self.bus) || self.bus != 'Virtio'",message="a CD-ROM is on SATA or SCSI: set bus to one of them, or leave it out for SATA"
// +kubebuilder:validation:XValidation:rule="!has(self.ioThread) || !self.ioThread || !has(self.bus) || self.bus != 'SATA'",message="a disk on SATA has no thread of its own: leave ioThread out, or set bus to Virtio or SCSI"
type Disk struct {
	// name tells the disk from the others; the guest sees it as the disk's serial number, unless serial gives another.
	// +required
	// +kubebuilder:validation:MaxLength=20
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')`,message="a disk's name must be of lower case letters, digits and '-', such as root: it is the disk's serial number"
	Name string `json:"name"`
	// type is Disk, which is the default, or CDROM: a drive that is only read. Its image can be changed while the guest runs;
	// without one it is empty.
	// +optional
	Type DiskType `json:"type,omitempty"`
	// image holds a raw or qcow2 disk: an OCI image (containerDisk or artifact), or https://host/file, with #sha256=… perhaps.
	// The disk is a copy-on-write layer over it on the node's own storage, kept until the VirtualMachine is deleted. Beside a
	// persistentVolumeClaim it seeds the claim once, while that is blank.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^(https?://[^\s@/?#]+/[^\s#]*(#sha(256=[0-9a-f]{64}|512=[0-9a-f]{128}))?|(([a-zA-Z0-9][a-zA-Z0-9.-]*|\[[a-fA-F0-9:]+\])(:[0-9]+)?/)?[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]{32,})?(#disk=[A-Za-z0-9_.-]{1,128})?)$')`,message="image is no image reference: write registry/repository:tag or registry/repository@sha256:…, in lower case, with #disk=NAME perhaps, or https://host/file, with #sha256=… perhaps, without a password or spaces"
	Image string `json:"image,omitempty"`
	// virtualMachineImage names, in place of image, a VirtualMachineImage.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=50
	VirtualMachineImage string `json:"virtualMachineImage,omitempty"`
	// empty makes a blank disk on the node's own storage, which is kept until the VirtualMachine is deleted. It needs a size.
	// +optional
	Empty *EmptyDisk `json:"empty,omitempty"`
	// persistentVolumeClaim makes the disk of a claim in the same namespace: of the file disk.img in a Filesystem volume,
	// or of a Block volume itself. Its data outlives the node.
	// +optional
	PersistentVolumeClaim *DiskClaim `json:"persistentVolumeClaim,omitempty"`
	// access says how the guest uses its claim: ReadWrite, alone, which is the default; ReadOnly, beside others that only
	// read; or Shared, beside others that share it and see to it themselves that none destroys what another wrote.
	// +optional
	Access DiskAccess `json:"access,omitempty"`
	// size is what the guest sees, such as 20Gi; by default the image's own, if the administrator allows so much, and never less.
	// It may grow while the guest runs, and never shrinks. A Filesystem claim's is by default all it holds; a Block claim has its own.
	// +optional
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).isGreaterThan(quantity('1023Ki'))",message="size must be a quantity of at least 1Mi, such as 20Gi"
	Size *resource.Quantity `json:"size,omitempty"`
	// ephemeral makes the disk fresh at every start of the guest.
	// +optional
	Ephemeral bool `json:"ephemeral,omitempty"`
	// bus is what connects the disk to the guest: Virtio, which is the default of disks, SCSI (virtio-scsi), or SATA, which is
	// the default of CD-ROMs. At most 6 are on SATA.
	// +optional
	Bus DiskBus `json:"bus,omitempty"`
	// cache is how QEMU caches the disk on the host: None (O_DIRECT), Writeback or Writethrough. By default it is None where
	// the file system can, and Writeback elsewhere; an ephemeral disk does not wait for flushes then. A Shared claim has None.
	// +optional
	Cache DiskCache `json:"cache,omitempty"`
	// ioThread gives the disk's requests a thread of QEMU's beside that of all others. The disks on SCSI have one in common.
	// +optional
	IOThread bool `json:"ioThread,omitempty"`
	// serial is the serial number that the guest sees; the disk's name by default.
	// +optional
	// +kubebuilder:validation:MaxLength=20
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[A-Za-z0-9_.-]+$') && self != 'BERTH'`,message="serial must be of letters, digits, '_', '.' and '-', such as WD-1234, and not BERTH, which is that of the disk with the guest program"
	Serial string `json:"serial,omitempty"`
	// limits are how fast the disk may be. They act, and change, while the guest runs. Without them it is as fast as it can be.
	// +optional
	Limits *DiskLimits `json:"limits,omitempty"`
}

// DiskType is a kind of drive. "" is Disk.
//
// +kubebuilder:validation:Enum=Disk;CDROM
type DiskType string

// The kinds of drives.
const (
	DiskTypeDisk  DiskType = "Disk"
	DiskTypeCDROM DiskType = "CDROM"
)

// DiskBus is what connects a disk to the guest. "" is Virtio, and of a CD-ROM SATA.
//
// +kubebuilder:validation:Enum=Virtio;SCSI;SATA
type DiskBus string

// The buses of disks.
const (
	BusVirtio DiskBus = "Virtio"
	BusSCSI   DiskBus = "SCSI"
	BusSATA   DiskBus = "SATA"
)

// DiskCache is how QEMU caches a disk on the host. "" is None where the file system can, and else Writeback; an ephemeral
// disk with "" ignores flushes.
//
// +kubebuilder:validation:Enum=None;Writeback;Writethrough
type DiskCache string

// The ways to cache disks.
const (
	CacheNone         DiskCache = "None"
	CacheWriteback    DiskCache = "Writeback"
	CacheWritethrough DiskCache = "Writethrough"
)

// DiskLimits are how fast a disk may be. Reads and writes count together.
//
// +kubebuilder:validation:XValidation:rule="has(self.iops) || has(self.bytesPerSecond)",message="limits limit nothing: give iops, bytesPerSecond or both, or leave limits out"
// +kubebuilder:validation:XValidation:rule="!has(self.burst) || !has(self.burst.iops) || has(self.iops) && self.burst.iops > self.iops",message="burst.iops must be more than the iops that it is a burst of: give both"
// +kubebuilder:validation:XValidation:rule="!has(self.burst) || !has(self.burst.bytesPerSecond) || has(self.bytesPerSecond) && quantity(string(self.burst.bytesPerSecond)).isGreaterThan(quantity(string(self.bytesPerSecond)))",message="burst.bytesPerSecond must be more than the bytesPerSecond that it is a burst of: give both"
type DiskLimits struct {
	// iops is how many requests the disk takes in a second.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	IOPS *int64 `json:"iops,omitempty"`
	// bytesPerSecond is how much is read and written in a second, such as 50Mi.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity('64Ki')) >= 0 && quantity(string(self)).compareTo(quantity('256Gi')) <= 0",message="bytesPerSecond must be a quantity from 64Ki to 256Gi, such as 50Mi"
	BytesPerSecond *resource.Quantity `json:"bytesPerSecond,omitempty"`
	// burst is what the disk may do for a while, after a time in which it did less than it may.
	// +optional
	Burst *DiskBurst `json:"burst,omitempty"`
}

// DiskBurst is how fast a disk may be for a while.
//
// +kubebuilder:validation:XValidation:rule="has(self.iops) || has(self.bytesPerSecond)",message="burst allows nothing: give iops, bytesPerSecond or both, or leave burst out"
type DiskBurst struct {
	// iops is how many requests the disk takes in a second then.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=1000000000
	IOPS *int64 `json:"iops,omitempty"`
	// bytesPerSecond is how much is read and written in a second then, such as 200Mi.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	// +kubebuilder:validation:XValidation:rule="quantity(string(self)).compareTo(quantity('256Gi')) <= 0",message="a burst's bytesPerSecond must be at most 256Gi, such as 200Mi"
	BytesPerSecond *resource.Quantity `json:"bytesPerSecond,omitempty"`
	// seconds is how long a burst at full rate lasts; 1 by default.
	// +optional
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=3600
	Seconds *int32 `json:"seconds,omitempty"`
}

// EmptyDisk is a blank disk on the node's own storage.
type EmptyDisk struct{}

// DiskClaim names the claim of a disk.
//
// +kubebuilder:validation:XValidation:rule="has(self.claimName) != has(self.templateName)",message="give claimName, of a claim that exists, or templateName, of one of volumeClaimTemplates, and not both"
type DiskClaim struct {
	// claimName is the name of a PersistentVolumeClaim in the same namespace.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')`,message="claimName must be that of a PersistentVolumeClaim in the same namespace, such as web-data"
	ClaimName string `json:"claimName,omitempty"`
	// templateName is the name of one of volumeClaimTemplates, from which the claim is made.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	TemplateName string `json:"templateName,omitempty"`
}

// DiskAccess says how a guest uses a claim. "" is ReadWrite.
//
// +kubebuilder:validation:Enum=ReadWrite;ReadOnly;Shared
type DiskAccess string

// The ways to use a claim.
const (
	DiskReadWrite DiskAccess = "ReadWrite"
	DiskReadOnly  DiskAccess = "ReadOnly"
	DiskShared    DiskAccess = "Shared"
)

// VolumeClaimTemplate is what a claim of the VirtualMachine is made from.
type VolumeClaimTemplate struct {
	// metadata names the template, and adds metadata to its claim.
	// +required
	Metadata VolumeClaimMetadata `json:"metadata"`
	// spec is the claim's. One that exists keeps it, but for a storage request that grows.
	// +required
	Spec corev1.PersistentVolumeClaimSpec `json:"spec"`
}

// VolumeClaimMetadata names a template, and adds metadata to its claim.
type VolumeClaimMetadata struct {
	// name is the template's, such as data. The claim's is the VirtualMachine's, '-' and this.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')`,message="a template's name must be of lower case letters, digits and '-', such as data"
	Name string `json:"name"`
	// labels are put on the claim when it is made.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(k, !(k.startsWith('berth.dev/') || k.contains('.berth.dev/')))",message="labels of berth.dev are Berth's own: use another prefix"
	Labels map[string]string `json:"labels,omitempty"`
	// annotations are put on the claim when it is made.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Annotations map[string]string `json:"annotations,omitempty"`
}

// VolumeClaimRetention says what becomes of the claims that were made from volumeClaimTemplates.
//
// +kubebuilder:validation:Enum=Retain;Delete
type VolumeClaimRetention string

// The ways to treat claims when their VirtualMachine is deleted.
const (
	VolumeClaimRetain VolumeClaimRetention = "Retain"
	VolumeClaimDelete VolumeClaimRetention = "Delete"
)

// Network is a network interface of the guest.
type Network struct {
	// name tells the interface from the others.
	// +required
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')`,message="a network's name must be of lower case letters, digits and '-', such as default"
	Name string `json:"name"`
	// pod connects the guest to the cluster's pod network: it has a private address of its own, and the berth's
	// address, all ports of it, leads to the guest.
	// +required
	Pod *PodNetwork `json:"pod"`
}

// PodNetwork is the cluster's pod network.
type PodNetwork struct{}

// CloudInit is the guest's first-boot configuration, handed over as a NoCloud seed.
//
// +kubebuilder:validation:XValidation:rule="(has(self.userData) ? size(bytes(self.userData)) : 0) + (has(self.networkData) ? size(bytes(self.networkData)) : 0) <= 49152",message="userData and networkData are more than 48Ki in all: put the user data into a Secret, and name it in userDataSecretRef"
// +kubebuilder:validation:XValidation:rule="!(has(self.userData) && has(self.userDataSecretRef))",message="give userData or userDataSecretRef, not both"
// +kubebuilder:validation:XValidation:rule="!(has(self.networkData) && has(self.networkDataSecretRef))",message="give networkData or networkDataSecretRef, not both"
// +kubebuilder:validation:XValidation:rule="!(has(self.userDataSecretRef) && has(self.networkDataSecretRef)) || self.userDataSecretRef.name != self.networkDataSecretRef.name || self.userDataSecretRef.key != self.networkDataSecretRef.key",message="userDataSecretRef and networkDataSecretRef name the same key of one Secret: name the other key, such as networkdata"
// +kubebuilder:validation:XValidation:rule="has(self.userData) || has(self.userDataSecretRef) || has(self.networkData) || has(self.networkDataSecretRef)",message="cloudInit is empty: give user or network data, or leave cloudInit out"
type CloudInit struct {
	// userData is cloud-init's user data. Everybody who may read the VirtualMachine can read it: keep passwords and
	// keys in a Secret and name it in userDataSecretRef.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=262144
	UserData *string `json:"userData,omitempty"`
	// userDataSecretRef names a Secret in the same namespace whose key holds the user data.
	// +optional
	UserDataSecretRef *SecretKeyReference `json:"userDataSecretRef,omitempty"`
	// networkData is cloud-init's network configuration (version 1 or 2); DHCP by default.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	NetworkData *string `json:"networkData,omitempty"`
	// networkDataSecretRef names a Secret in the same namespace whose key holds the network configuration.
	// +optional
	NetworkDataSecretRef *SecretKeyReference `json:"networkDataSecretRef,omitempty"`
}

// Ignition is the guest's first-boot configuration, handed over as QEMU's firmware configuration opt/com.coreos/config
// (https://coreos.github.io/ignition/supported-platforms, qemu).
//
// +kubebuilder:validation:XValidation:rule="has(self.config) != has(self.secretRef)",message="give config or secretRef: one of them"
type Ignition struct {
	// config is the configuration, in JSON. Everybody who may read the VirtualMachine can read it.
	// +optional
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=65536
	Config *string `json:"config,omitempty"`
	// secretRef names a Secret in the same namespace whose key holds the configuration.
	// +optional
	SecretRef *SecretKeyReference `json:"secretRef,omitempty"`
}

// SecretKeyReference names a key of a Secret.
type SecretKeyReference struct {
	// name is the Secret's name.
	// +required
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')`,message="name must be that of a Secret in the same namespace, such as web-user-data"
	Name string `json:"name"`
	// key is the key in the Secret.
	// +optional
	// +kubebuilder:default=userdata
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[-._a-zA-Z0-9]+$')`,message="key must be a key of the Secret: letters, digits, '-', '_' and '.'"
	Key string `json:"key,omitempty"`
}

// LocalReference names an object in the same namespace.
type LocalReference struct {
	// name is the object's name.
	// +required
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')`,message="name must be that of a Secret in the same namespace, such as web-user-data"
	Name string `json:"name"`
}

// GuestTools says whether a guest gets Berth's guest program.
//
// +kubebuilder:validation:Enum=Offered;None
type GuestTools string

// The ways to treat the guest program.
const (
	GuestToolsOffered GuestTools = "Offered"
	GuestToolsNone    GuestTools = "None"
)

// DisplayType is a kind of graphics card.
//
// +kubebuilder:validation:Enum=VGA;Virtio
type DisplayType string

// The types of displays.
const (
	DisplayVGA    DisplayType = "VGA"    // a card that everything can drive, boot loaders and text modes included
	DisplayVirtio DisplayType = "Virtio" // faster, and starts as a VGA; the guest's kernel needs virtio-gpu
)

// Display is the guest's screen.
type Display struct {
	// type is the graphics card: VGA, which everything can drive, or Virtio, which is faster where the guest's kernel has
	// virtio-gpu.
	// +optional
	// +kubebuilder:default=VGA
	Type DisplayType `json:"type,omitempty"`
}

// BerthTemplate adds metadata to a guest's pod.
type BerthTemplate struct {
	// labels are put on the pod, for Services, NetworkPolicies and spreading.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	// +kubebuilder:validation:XValidation:rule="self.all(k, !(k.startsWith('berth.dev/') || k.contains('.berth.dev/')))",message="labels of berth.dev are Berth's own: use another prefix"
	Labels map[string]string `json:"labels,omitempty"`
	// annotations are put on the pod if the administrator's allow-list has them.
	// +optional
	// +kubebuilder:validation:MaxProperties=64
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Probe is a pod's probe that the guest answers. Its exec.command has at most 256 words, which hack/generate adds.
//
// +kubebuilder:validation:XValidation:rule="!(has(self.httpGet) && has(self.httpGet.host))",message="httpGet.host leads away from the guest: leave it out, and give a name that the guest's server wants as the header Host in httpGet.httpHeaders"
// +kubebuilder:validation:XValidation:rule="!(has(self.tcpSocket) && has(self.tcpSocket.host))",message="tcpSocket.host leads away from the guest: leave it out"
// +kubebuilder:validation:XValidation:rule="!has(self.exec) || has(self.exec.command) && size(self.exec.command) > 0",message="exec.command is empty: give the command that is run in the guest, and its arguments"
// +kubebuilder:validation:XValidation:rule="!has(self.exec) || !has(self.exec.command) || self.exec.command.map(w, size(bytes(w)) + 1).sum() <= 32700",message="exec.command is longer than 32700 bytes, each word with one that ends it: put it into a script in the guest"
// +kubebuilder:validation:XValidation:rule="!has(self.httpGet) || type(self.httpGet.port) == int",message="httpGet.port must be a number: a guest has no named ports"
// +kubebuilder:validation:XValidation:rule="!has(self.tcpSocket) || type(self.tcpSocket.port) == int",message="tcpSocket.port must be a number: a guest has no named ports"
type Probe struct {
	corev1.Probe `json:",inline"`
}
