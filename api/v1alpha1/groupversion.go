package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Group is the API group of Berth.
const Group = "berth.dev"

// GroupVersion names this version of the group.
var GroupVersion = schema.GroupVersion{Group: Group, Version: "v1alpha1"}

// AddToScheme makes a scheme know this package's kinds.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion,
		&VirtualMachine{}, &VirtualMachineList{},
		&VirtualMachineHost{}, &VirtualMachineHostList{},
		&VirtualMachineImage{}, &VirtualMachineImageList{},
		&VirtualMachineCommit{}, &VirtualMachineCommitList{},
	)
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}
