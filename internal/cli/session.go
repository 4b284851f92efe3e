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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	cmdutil "k8s.io/kubectl/pkg/cmd/util"
	"k8s.io/kubectl/pkg/util/completion"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/kube"
)

// resourceName is what kubectl calls a VirtualMachine.
const resourceName = "virtualmachine.berth.dev"

// session is one run of the program: its terminal, its cluster and its namespace.
type session struct {
	genericiooptions.IOStreams
	factory cmdutil.Factory
	// after connect:
	api       client.WithWatch
	config    *rest.Config // kubectl's, for streams
	clients   *kubernetes.Clientset
	namespace string
}

// connect makes the clients.
func (s *session) connect() (err error) {
	if s.config, err = s.factory.ToRESTConfig(); err != nil {
		return err
	}
	if s.namespace, _, err = s.factory.ToRawKubeConfigLoader().Namespace(); err != nil {
		return err
	}
	if s.clients, err = s.factory.KubernetesClientSet(); err != nil {
		return err
	}
	mapper, err := s.factory.ToRESTMapper() // from kubectl's cache
	if err != nil {
		return err
	}
	config := rest.CopyConfig(s.config)
	config.QPS, config.Burst = 50, 300 // several names at once
	scheme := kube.Scheme()
	if err := metricsv1beta1.AddToScheme(scheme); err != nil {
		return err
	}
	s.api, err = client.NewWithWatch(config, client.Options{Scheme: scheme, Mapper: mapper})
	return err
}

// verb makes a command that takes so many names of VirtualMachines to complete: 0 is any number, -1 none.
func (s *session) verb(use, short string, args cobra.PositionalArgs, names int, run func(ctx context.Context, args []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Args: args, ValidArgsFunction: s.complete(names), RunE: func(cmd *cobra.Command, args []string) error {
		if err := s.connect(); err != nil {
			return err
		}
		return run(cmd.Context(), args)
	}}
}

// guestVerb makes a verb about the guest of a VirtualMachine that the first argument names; rest are the others.
func (s *session) guestVerb(use, short string, args cobra.PositionalArgs, run func(ctx context.Context, vm *v1alpha1.VirtualMachine, pod *corev1.Pod, rest []string) error) *cobra.Command {
	return s.verb(use, short, args, 1, func(ctx context.Context, args []string) error {
		vm, pod, err := s.berth(ctx, args[0])
		if err != nil {
			return err
		}
		return run(ctx, vm, pod, args[1:])
	})
}

func (s *session) complete(most int) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, begun string) (names []string, _ cobra.ShellCompDirective) {
		if most == 0 || len(args) < most {
			names = completion.CompGetResource(s.factory, resourceName, begun)
		}
		return slices.DeleteFunc(names, func(n string) bool { return slices.Contains(args, n) }), cobra.ShellCompDirectiveNoFileComp
	}
}

// vm finds a VirtualMachine by its name, also as TYPE/NAME, or by the beginning of one that fits no other.
func (s *session) vm(ctx context.Context, word string) (*v1alpha1.VirtualMachine, error) {
	kind, name, isTyped := strings.Cut(word, "/")
	if !isTyped {
		kind, name = "vm", word
	}
	if !slices.Contains([]string{"vm", "bvm", "virtualmachine", "virtualmachines", resourceName, "virtualmachines.berth.dev"}, kind) || name == "" {
		return nil, fmt.Errorf("%s is no VirtualMachine's name: write NAME or vm/NAME", word)
	}
	vm := &v1alpha1.VirtualMachine{}
	err := s.api.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, vm)
	if !apierrors.IsNotFound(err) || explained(err) != err { //nolint:errorlint // whether it is another
		return vm, err
	}
	list, err := s.list(ctx, s.namespace, "")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, other := range list.Items {
		if strings.HasPrefix(other.Name, name) {
			names, vm = append(names, other.Name), &other
		}
	}
	switch len(names) {
	case 0:
		return nil, fmt.Errorf("%s/%s is not in namespace %s: kubectl vm ps -a lists what is, -n names another", resourceName, name, s.namespace)
	case 1:
		return vm, nil
	}
	return nil, fmt.Errorf("%s is the beginning of %s: write more of it", name, strings.Join(names, ", "))
}

// vms finds several, and no one twice.
func (s *session) vms(ctx context.Context, names []string) (found []*v1alpha1.VirtualMachine, err error) {
	for _, name := range names {
		vm, failure := s.vm(ctx, name)
		if failure != nil {
			err = errors.Join(err, failure)
		} else if !slices.ContainsFunc(found, func(f *v1alpha1.VirtualMachine) bool { return f.UID == vm.UID }) {
			found = append(found, vm)
		}
	}
	return found, err
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
	case err != nil || pod != nil:
		return vm, pod, err
	case vm.Spec.State == v1alpha1.StateStopped || vm.Status.Ended != nil:
		return nil, nil, fmt.Errorf("%[1]s/%[2]s has no guest: kubectl vm start %[2]s", resourceName, vm.Name)
	default:
		return nil, nil, fmt.Errorf("%[1]s/%[2]s has no guest yet: kubectl vm why %[2]s", resourceName, vm.Name)
	}
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
