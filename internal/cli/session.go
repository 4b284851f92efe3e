package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/rest"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kube"
)

// resourceName is what kubectl calls a VirtualMachine.
const resourceName = "virtualmachine.berth.dev"

// session is one run of the program: its terminal, its cluster and its namespace.
type session struct {
	genericiooptions.IOStreams
	factory   cmdutil.Factory
	scheme    *runtime.Scheme
	api       client.WithWatch // after connect
	namespace string
}

// connect makes the client. It asks the API server nothing: the few kinds are known.
func (s *session) connect() error {
	if s.api != nil {
		return nil
	}
	config, err := s.factory.ToRESTConfig()
	if err != nil {
		return err
	}
	if s.namespace, _, err = s.factory.ToRawKubeConfigLoader().Namespace(); err != nil {
		return err
	}
	config = rest.CopyConfig(config)
	config.QPS, config.Burst = 50, 300 // several names at once
	s.scheme = kube.Scheme()
	mapper := meta.NewDefaultRESTMapper(nil)
	for kind, scope := range map[schema.GroupVersionKind]meta.RESTScope{
		v1alpha1.GroupVersion.WithKind("VirtualMachine"):                                                 meta.RESTScopeNamespace,
		v1alpha1.GroupVersion.WithKind("VirtualMachineHost"):                                             meta.RESTScopeRoot,
		corev1.SchemeGroupVersion.WithKind("Pod"):                                                        meta.RESTScopeNamespace,
		corev1.SchemeGroupVersion.WithKind("Service"):                                                    meta.RESTScopeNamespace,
		corev1.SchemeGroupVersion.WithKind("Event"):                                                      meta.RESTScopeNamespace,
		corev1.SchemeGroupVersion.WithKind("ResourceQuota"):                                              meta.RESTScopeNamespace,
		corev1.SchemeGroupVersion.WithKind("Namespace"):                                                  meta.RESTScopeRoot,
		corev1.SchemeGroupVersion.WithKind("Node"):                                                       meta.RESTScopeRoot,
		{Group: "apps", Version: "v1", Kind: "Deployment"}:                                               meta.RESTScopeNamespace,
		{Group: "apps", Version: "v1", Kind: "DaemonSet"}:                                                meta.RESTScopeNamespace,
		{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"}:                 meta.RESTScopeRoot,
		{Group: "admissionregistration.k8s.io", Version: "v1", Kind: "ValidatingAdmissionPolicyBinding"}: meta.RESTScopeRoot,
		{Group: "metrics.k8s.io", Version: "v1beta1", Kind: "PodMetrics"}:                                meta.RESTScopeNamespace,
	} {
		mapper.Add(kind, scope)
	}
	s.api, err = client.NewWithWatch(config, client.Options{Scheme: s.scheme, Mapper: mapper})
	return err
}

// vm finds a VirtualMachine by its name, also as TYPE/NAME, or by the beginning of one that fits no other.
func (s *session) vm(ctx context.Context, name string) (*v1alpha1.VirtualMachine, error) {
	if err := s.connect(); err != nil {
		return nil, err
	}
	kind, name, isTyped := strings.Cut(name, "/")
	if !isTyped {
		kind, name = "vm", kind
	}
	if !slices.Contains([]string{"vm", "bvm", "virtualmachine", "virtualmachines", resourceName, "virtualmachines.berth.dev"}, kind) || name == "" {
		return nil, fmt.Errorf("%s/%s is no VirtualMachine's name: write NAME or vm/NAME", kind, name)
	}
	vm := &v1alpha1.VirtualMachine{}
	err := s.api.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, vm)
	if !apierrors.IsNotFound(err) || explained(err) != err {
		return vm, err
	}
	names, listErr := s.names(ctx, name)
	switch {
	case listErr != nil:
		return nil, errors.Join(err, listErr)
	case len(names) == 0:
		return nil, fmt.Errorf("%s/%s is not in namespace %s: kubectl vm ps -a lists what is, -n names another", resourceName, name, s.namespace)
	case len(names) > 1:
		return nil, fmt.Errorf("%s is the beginning of %s: write more of it", name, strings.Join(names, ", "))
	}
	return vm, s.api.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: names[0]}, vm)
}

// vms finds several, and no one twice.
func (s *session) vms(ctx context.Context, names []string) (found []*v1alpha1.VirtualMachine, err error) {
	var failures []error
	for _, name := range names {
		vm, err := s.vm(ctx, name)
		if err != nil {
			failures = append(failures, err)
		} else if !slices.ContainsFunc(found, func(f *v1alpha1.VirtualMachine) bool { return f.UID == vm.UID }) {
			found = append(found, vm)
		}
	}
	return found, errors.Join(failures...)
}

// names are those of the namespace's VirtualMachines that begin so.
func (s *session) names(ctx context.Context, prefix string) (names []string, err error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("VirtualMachineList"))
	if err := s.api.List(ctx, list, client.InNamespace(s.namespace)); err != nil {
		return nil, err
	}
	for _, vm := range list.Items {
		if strings.HasPrefix(vm.Name, prefix) {
			names = append(names, vm.Name)
		}
	}
	return names, nil
}

// pod is a VirtualMachine's berth, nil if it has none.
func (s *session) pod(ctx context.Context, vm *v1alpha1.VirtualMachine) (*corev1.Pod, error) {
	if vm.Status.Berth == nil {
		return nil, nil
	}
	pod := &corev1.Pod{}
	err := s.api.Get(ctx, client.ObjectKey{Namespace: vm.Namespace, Name: vm.Status.Berth.PodName}, pod)
	if apierrors.IsNotFound(err) || err == nil && pod.UID != vm.Status.Berth.PodUID {
		return nil, nil
	}
	return pod, err
}

// berth is the pod of a guest that is to be talked to. A VirtualMachine without one has an error that says what to do.
func (s *session) berth(ctx context.Context, name string) (*v1alpha1.VirtualMachine, *corev1.Pod, error) {
	vm, err := s.vm(ctx, name)
	if err != nil {
		return nil, nil, err
	}
	pod, err := s.pod(ctx, vm)
	switch {
	case err != nil:
		return nil, nil, err
	case pod != nil:
		return vm, pod, nil
	case vm.Spec.State == v1alpha1.StateStopped || vm.Status.Ended != nil:
		return nil, nil, fmt.Errorf("%s/%s has no guest: kubectl vm start %s", resourceName, vm.Name, vm.Name)
	default:
		return nil, nil, fmt.Errorf("%s/%s has no guest yet: kubectl vm why %s", resourceName, vm.Name, vm.Name)
	}
}

// complete offers the names of VirtualMachines, of which a command line takes at most so many; 0 is any number.
func (s *session) complete(most int) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, begun string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most || s.connect() != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		names, err := s.names(cmd.Context(), begun)
		if err != nil {
			return nil, cobra.ShellCompDirectiveError
		}
		return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveNoFileComp
	}
}

func (s *session) completeNamespace(cmd *cobra.Command, _ []string, begun string) ([]string, cobra.ShellCompDirective) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if s.connect() != nil || s.api.List(cmd.Context(), list) != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var names []string
	for _, n := range list.Items {
		if strings.HasPrefix(n.Name, begun) {
			names = append(names, n.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// printFlags are kubectl's -o for objects of ours.
func printFlags(operation string) *genericclioptions.PrintFlags {
	return genericclioptions.NewPrintFlags(operation).WithTypeSetter(kube.Scheme())
}

// print writes an object as -o asks, by default as kubectl does: virtualmachine.berth.dev/web started.
func (s *session) print(flags *genericclioptions.PrintFlags, object runtime.Object) error {
	printer, err := flags.ToPrinter()
	if err != nil {
		return err
	}
	return printer.PrintObj(object, s.Out)
}
