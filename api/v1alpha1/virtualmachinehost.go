package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// VirtualMachineHost is a node as its agent sees it. The agent makes it, under
// the node's name; there is nothing to write in it by hand.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=vmhost;bvmh
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Acceleration",type=string,JSONPath=`.status.acceleration`
// +kubebuilder:printcolumn:name="Libvirt",type=string,JSONPath=`.status.libvirtVersion`
// +kubebuilder:printcolumn:name="QEMU",type=string,JSONPath=`.status.qemuVersion`
// +kubebuilder:printcolumn:name="WellConfigured",type=string,JSONPath=`.status.conditions[?(@.type=="WellConfigured")].status`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type VirtualMachineHost struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// status is what the agent sees of its host.
	// +optional
	Status VirtualMachineHostStatus `json:"status,omitempty"`
}

// VirtualMachineHostList is a list of VirtualMachineHosts.
//
// +kubebuilder:object:root=true
type VirtualMachineHostList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VirtualMachineHost `json:"items"`
}

// Condition types of a VirtualMachineHost.
const (
	ConditionHostReady      = "Ready"          // guests can start on this host
	ConditionWellConfigured = "WellConfigured" // nothing on the host weakens a promise
)

// Acceleration is how a host runs guests.
//
// +kubebuilder:validation:Enum=KVM;Emulation
type Acceleration string

// The accelerations.
const (
	AccelerationKVM       Acceleration = "KVM"
	AccelerationEmulation Acceleration = "Emulation"
)

// VirtualMachineHostStatus is what an agent sees of its host.
type VirtualMachineHostStatus struct {
	// conditions are the facts: Ready, WellConfigured.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// acceleration is how guests run here: by KVM, or emulated (slow; for development).
	// +optional
	Acceleration Acceleration `json:"acceleration,omitempty"`
	// bootID is the kernel's boot ID.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	BootID string `json:"bootID,omitempty"`
	// storeID is the ID of the store of images and disks that was first used on this node. Another store, or one without
	// an ID, is not used: its file system may not be mounted. Delete the VirtualMachineHost to have the node take it.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	StoreID string `json:"storeID,omitempty"`
	// agentVersion is the version of Berth's agent.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	AgentVersion string `json:"agentVersion,omitempty"`
	// libvirtVersion is libvirtd's version.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	LibvirtVersion string `json:"libvirtVersion,omitempty"`
	// qemuVersion is QEMU's version.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	QEMUVersion string `json:"qemuVersion,omitempty"`
	// kernelVersion is the host kernel's release.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	KernelVersion string `json:"kernelVersion,omitempty"`
	// cpus is the number of the host's logical processors.
	// +optional
	CPUs int32 `json:"cpus,omitempty"`
	// memory is the host's memory.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	Memory *resource.Quantity `json:"memory,omitempty"`
	// cpuModels are the models that guests can be given here without emulating instructions.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=128
	CPUModels []string `json:"cpuModels,omitempty"`
	// machineTypes are the machine types that QEMU knows here.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=128
	MachineTypes []string `json:"machineTypes,omitempty"`
	// storeCapacity is what the file system has that holds images and node-local disks.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	StoreCapacity *resource.Quantity `json:"storeCapacity,omitempty"`
	// storeUsedPercent is how much of it is taken, by whatever it is: 0 to 100. Above agent.unusedImages.fullPercent unused images go early.
	// +optional
	StoreUsedPercent *int32 `json:"storeUsedPercent,omitempty"`
	// images are the images kept on this host.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	Images []HostImage `json:"images,omitempty"`
	// foreignDomains are the names of domains on this host that are not Berth's. They are never touched.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MaxLength=1024
	ForeignDomains []string `json:"foreignDomains,omitempty"`
	// problems are what is misconfigured, and how to fix it.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=32
	Problems []HostProblem `json:"problems,omitempty"`
	// strayDisks are node-local disks whose VirtualMachine nobody knows. They are kept for as long as agent.keepStrayDisks says,
	// which is for ever by default.
	// +optional
	// +listType=atomic
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:MaxLength=1024
	StrayDisks []string `json:"strayDisks,omitempty"`
	// strayDiskSize is what all stray disks take on the host.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	StrayDiskSize *resource.Quantity `json:"strayDiskSize,omitempty"`
	// releasedBerths are the UIDs of berths that are being deleted, that no VirtualMachine's status names, and of which no process is left.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:items:Type=string
	// +kubebuilder:validation:items:MaxLength=64
	ReleasedBerths []types.UID `json:"releasedBerths,omitempty"`
}

// HostImage is an image kept on a host.
type HostImage struct {
	// digest is the image's digest.
	// +required
	// +kubebuilder:validation:MaxLength=256
	Digest string `json:"digest"`
	// size is what it takes on the host.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	Size *resource.Quantity `json:"size,omitempty"`
	// lastUsed is when a guest on the host was last seen to need it; absent while one does.
	// +optional
	LastUsed *metav1.Time `json:"lastUsed,omitempty"`
}

// HostProblem is something that is misconfigured on a host.
type HostProblem struct {
	// name tells the problem from the others, in one word.
	// +required
	// +kubebuilder:validation:MaxLength=64
	Name string `json:"name"`
	// blocking is true when no guest can start because of it.
	// +optional
	Blocking bool `json:"blocking,omitempty"`
	// message says what is wrong and how to fix it.
	// +required
	// +kubebuilder:validation:MaxLength=4096
	Message string `json:"message"`
}
