package cli

import (
	"context"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func (s *session) inspect() *cobra.Command {
	flags := printFlags("").WithDefaultOutput("yaml")
	cmd := &cobra.Command{
		Use:               "inspect NAME… [-o yaml|json|name|jsonpath=…]",
		Short:             "Show a VirtualMachine with its pod, its host and their Events, as one List",
		Example:           "  kubectl vm inspect web\n  kubectl vm inspect web -o jsonpath='{.items[0].status.addresses[0]}'",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.complete(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := s.vms(cmd.Context(), args)
			if err != nil {
				return err
			}
			list := &corev1.List{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}}
			for _, vm := range vms {
				all, err := s.around(cmd.Context(), vm)
				if err != nil {
					return err
				}
				for _, object := range all {
					if err := s.typed(object); err != nil {
						return err
					}
					list.Items = append(list.Items, runtime.RawExtension{Object: object})
				}
			}
			return s.print(flags, list)
		},
	}
	flags.AddFlags(cmd)
	return cmd
}

// typed gives an object the kind that a client leaves out, and takes away what is for the API server alone.
func (s *session) typed(object client.Object) error {
	kind, err := apiutil.GVKForObject(object, s.scheme)
	object.GetObjectKind().SetGroupVersionKind(kind)
	object.SetManagedFields(nil)
	return err
}

// around is a VirtualMachine with what belongs to it, as far as it is there and the user may see it: its pod, its host and
// the Events of both.
func (s *session) around(ctx context.Context, vm *v1alpha1.VirtualMachine) ([]client.Object, error) {
	all := []client.Object{vm}
	uids := []types.UID{vm.UID}
	pod, err := s.pod(ctx, vm)
	if err != nil {
		return nil, err
	}
	if pod != nil {
		all, uids = append(all, pod), append(uids, pod.UID)
	}
	host, err := s.host(ctx, vm.Status.NodeName)
	if err != nil {
		return nil, err
	}
	if host != nil {
		all = append(all, host)
	}
	for _, uid := range uids {
		events := &corev1.EventList{}
		selector := client.MatchingFields{"involvedObject.uid": string(uid)}
		if err := s.api.List(ctx, events, client.InNamespace(vm.Namespace), selector); err != nil && !apierrors.IsForbidden(err) {
			return nil, err
		}
		for i := range events.Items {
			all = append(all, &events.Items[i])
		}
	}
	return all, nil
}

// host is a node as its agent sees it; nil where there is none, or the user may not see it.
func (s *session) host(ctx context.Context, node string) (*v1alpha1.VirtualMachineHost, error) {
	if node == "" {
		return nil, nil
	}
	host := &v1alpha1.VirtualMachineHost{}
	err := s.api.Get(ctx, client.ObjectKey{Name: node}, host)
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil, nil
	}
	return host, err
}
