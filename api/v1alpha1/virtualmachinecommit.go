package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VirtualMachineCommit makes an image of one disk of a VirtualMachine as it is now, and pushes it to a registry. It is done
// once; another commit is another object.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=vmcommit
// +kubebuilder:printcolumn:name="VM",type=string,JSONPath=`.spec.virtualMachineName`
// +kubebuilder:printcolumn:name="Disk",type=string,JSONPath=`.spec.diskName`
// +kubebuilder:printcolumn:name="Complete",type=string,JSONPath=`.status.conditions[?(@.type=="Complete")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Complete")].reason`
// +kubebuilder:printcolumn:name="Quiesced",type=boolean,JSONPath=`.status.quiesced`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.size`
// +kubebuilder:printcolumn:name="Image",type=string,priority=1,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="Digest",type=string,priority=1,JSONPath=`.status.digest`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 50",message="metadata.name has more than 50 characters: the pod that pushes the image has it, and some more"
type VirtualMachineCommit struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// spec says which disk, and what image it becomes. It cannot be changed.
	// +required
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a commit is done once and cannot be changed: create another"
	Spec VirtualMachineCommitSpec `json:"spec"`
	// status is what has become of that.
	// +optional
	Status VirtualMachineCommitStatus `json:"status,omitempty"`
}

// VirtualMachineCommitList is a list of VirtualMachineCommits.
//
// +kubebuilder:object:root=true
type VirtualMachineCommitList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VirtualMachineCommit `json:"items"`
}

// The conditions of a VirtualMachineCommit: at most one becomes True, and then it is over.
const (
	ConditionComplete = "Complete" // the registry has the image
	ConditionFailed   = "Failed"   // there will be none
)

// Quiesce says whether the guest writes out what it has in memory, and holds its writes, when its disk is taken.
//
// +kubebuilder:validation:Enum=IfPossible;Required;Never
type Quiesce string

// The ways to quiesce.
const (
	QuiesceIfPossible Quiesce = "IfPossible" // by its guest agent, if one does; else the image is as after a power cut
	QuiesceRequired   Quiesce = "Required"   // or there is no image
	QuiesceNever      Quiesce = "Never"
)

// VirtualMachineCommitSpec says which disk, and what image it becomes.
type VirtualMachineCommitSpec struct {
	// virtualMachineName is the VirtualMachine, in the same namespace. It may run or be stopped.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	VirtualMachineName string `json:"virtualMachineName"`
	// diskName is the name of the disk in the VirtualMachine's spec.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=32
	DiskName string `json:"diskName"`
	// image is what the image is to be called in its registry.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=512
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^([a-zA-Z0-9][a-zA-Z0-9.-]*|\[[a-fA-F0-9:]+\])(:[0-9]+)?(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)+:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$')`,message="image is no name to push to: write registry/repository:tag, in lower case"
	Image string `json:"image"`
	// pushSecretName is a Secret of type kubernetes.io/dockerconfigjson in the same namespace, whose user may push.
	// +optional
	// +kubebuilder:validation:MaxLength=253
	PushSecretName string `json:"pushSecretName,omitempty"`
	// quiesce says whether a running guest is asked to write out what it has in memory.
	// +optional
	// +kubebuilder:default=IfPossible
	Quiesce Quiesce `json:"quiesce,omitempty"`
	// ttlSecondsAfterFinished is how long after its end the commit is deleted, in seconds. The image stays. Without it the
	// commit stays, too.
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=31536000
	TTLSecondsAfterFinished *int32 `json:"ttlSecondsAfterFinished,omitempty"`
}

// VirtualMachineCommitStatus is what has become of a commit.
type VirtualMachineCommitStatus struct {
	// conditions are Complete and Failed.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// digest is the image's.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Digest string `json:"digest,omitempty"`
	// size is what the registry keeps of it.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	Size *resource.Quantity `json:"size,omitempty"`
	// quiesced tells whether the guest held its writes when the disk was taken, or did not run.
	// +optional
	Quiesced *bool `json:"quiesced,omitempty"`
	// takenAt is when the disk was as the image has it.
	// +optional
	TakenAt *metav1.Time `json:"takenAt,omitempty"`
	// finishedAt is when the commit was over.
	// +optional
	FinishedAt *metav1.Time `json:"finishedAt,omitempty"`
}
