package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// VirtualMachineImage is an image of disks that nodes have before a guest needs it. Its name is resolved once; the digest is
// what guests get.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:shortName=vmimage
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Reason",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].reason`
// +kubebuilder:printcolumn:name="Nodes",type=integer,JSONPath=`.status.nodes.ready`
// +kubebuilder:printcolumn:name="Of",type=integer,JSONPath=`.status.nodes.total`
// +kubebuilder:printcolumn:name="Size",type=string,JSONPath=`.status.size`
// +kubebuilder:printcolumn:name="Image",type=string,priority=1,JSONPath=`.spec.image`
// +kubebuilder:printcolumn:name="Digest",type=string,priority=1,JSONPath=`.status.digest`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 50",message="metadata.name has more than 50 characters: the pods that bring the image to nodes have it, and some more"
type VirtualMachineImage struct {
	metav1.TypeMeta `json:",inline"`
	// metadata is the object's metadata.
	// +optional
	metav1.ObjectMeta `json:"metadata,omitempty"`
	// spec says which image, and where.
	// +required
	Spec VirtualMachineImageSpec `json:"spec"`
	// status is what has become of that.
	// +optional
	Status VirtualMachineImageStatus `json:"status,omitempty"`
}

// VirtualMachineImageList is a list of VirtualMachineImages.
//
// +kubebuilder:object:root=true
type VirtualMachineImageList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []VirtualMachineImage `json:"items"`
}

// ConditionResolved of a VirtualMachineImage: it is known what its name means. Its other one is ConditionReady: every node
// that is to have the image has it.
const ConditionResolved = "Resolved"

// VirtualMachineImageSpec says which image, and where.
type VirtualMachineImageSpec struct {
	// image holds a raw or qcow2 disk, as the image of a VirtualMachine's disk does.
	// +required
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	// +kubebuilder:validation:XValidation:rule=`self.matches(r'^(https?://[^\s@/?#]+/[^\s#]*(#sha(256=[0-9a-f]{64}|512=[0-9a-f]{128}))?|(([a-zA-Z0-9][a-zA-Z0-9.-]*|\[[a-fA-F0-9:]+\])(:[0-9]+)?/)?[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*(/[a-z0-9]+(([._]|__|-+)[a-z0-9]+)*)*(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(@[A-Za-z][A-Za-z0-9+._-]*:[0-9a-fA-F]{32,})?(#disk=[A-Za-z0-9_.-]{1,128})?)$')`,message="image is no image reference: write registry/repository:tag or registry/repository@sha256:…, in lower case, with #disk=NAME perhaps, or https://host/file, with #sha256=… perhaps, without a password or spaces"
	Image string `json:"image"`
	// imagePullSecrets are Secrets of type kubernetes.io/dockerconfigjson in the same namespace.
	// +optional
	// +listType=map
	// +listMapKey=name
	// +kubebuilder:validation:MaxItems=8
	ImagePullSecrets []LocalReference `json:"imagePullSecrets,omitempty"`
	// nodeSelector limits the nodes by their labels, as a pod's. Without it all that run guests have the image.
	// +optional
	// +kubebuilder:validation:MaxProperties=32
	NodeSelector map[string]string `json:"nodeSelector,omitempty"`
	// refreshedAt has the image resolved once more whenever it changes. Any text does; a time stamp is usual.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RefreshedAt string `json:"refreshedAt,omitempty"`
}

// VirtualMachineImageStatus is what has become of an image.
type VirtualMachineImageStatus struct {
	// conditions are Resolved and Ready.
	// +optional
	// +listType=map
	// +listMapKey=type
	// +kubebuilder:validation:MaxItems=8
	Conditions []metav1.Condition `json:"conditions,omitempty"`
	// digest is what the image was when it was resolved last.
	// +optional
	// +kubebuilder:validation:MaxLength=256
	Digest string `json:"digest,omitempty"`
	// image is the reference that was resolved.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	Image string `json:"image,omitempty"`
	// refreshedAt is the spec's refreshedAt when the image was resolved.
	// +optional
	// +kubebuilder:validation:MaxLength=64
	RefreshedAt string `json:"refreshedAt,omitempty"`
	// size is the space that the image takes on a node.
	// +optional
	// +kubebuilder:validation:XIntOrString
	// +kubebuilder:validation:MaxLength=64
	Size *resource.Quantity `json:"size,omitempty"`
	// nodes counts those that are to have the image.
	// +optional
	Nodes *ImageNodes `json:"nodes,omitempty"`
}

// ImageNodes counts nodes.
type ImageNodes struct {
	// ready is how many have the image.
	// +required
	Ready int32 `json:"ready"`
	// total is how many are to have it.
	// +required
	Total int32 `json:"total"`
}

// ImagePrefix begins what statuses have as the image of a disk that names a VirtualMachineImage; its name follows.
const ImagePrefix = "vmimage:"

// ImageName is a disk's image, or ImagePrefix and the name of its VirtualMachineImage; "" if it has neither.
func (d *Disk) ImageName() string {
	if d.VirtualMachineImage != "" {
		return ImagePrefix + d.VirtualMachineImage
	}
	return d.Image
}
