package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func (s *session) rm() *cobra.Command {
	var force bool
	var waits waitFlags
	flags := printFlags("deleted")
	cmd := &cobra.Command{
		Use:               "rm NAME… [-f] [--wait=false] [--timeout DURATION]",
		Short:             "Delete VirtualMachines and their disks; with -f also those whose guest runs, which is killed",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: s.complete(0),
		RunE: func(cmd *cobra.Command, args []string) error {
			vms, err := s.vms(cmd.Context(), args)
			failures := []error{err}
			var removed []*v1alpha1.VirtualMachine
			for _, vm := range vms {
				if !force && present(vm) {
					failures = append(failures, fmt.Errorf("%s/%s has a guest: stop it first, or kill and delete it by rm -f", resourceName, vm.Name))
				} else if err := s.remove(cmd.Context(), vm, force); err != nil {
					failures = append(failures, err)
				} else {
					removed = append(removed, vm)
				}
			}
			for _, vm := range removed {
				if err := waits.awaitGone(cmd.Context(), s, vm); err != nil {
					failures = append(failures, err)
					continue
				}
				failures = append(failures, s.print(flags, vm))
			}
			return errors.Join(failures...)
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "Kill the guest")
	waits.add(cmd)
	flags.AddFlags(cmd)
	return cmd
}

// remove deletes just this VirtualMachine, and its pod at once if asked to. That it is gone already is no error.
func (s *session) remove(ctx context.Context, vm *v1alpha1.VirtualMachine, kill bool) error {
	err := client.IgnoreNotFound(s.api.Delete(ctx, vm, client.Preconditions{UID: &vm.UID}))
	if err != nil || !kill {
		return err
	}
	return s.deletePod(ctx, vm, 1)
}

// awaitGone waits until a VirtualMachine is gone.
func (w *waitFlags) awaitGone(ctx context.Context, s *session, vm *v1alpha1.VirtualMachine) error {
	if !w.wait {
		return nil
	}
	if w.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, w.timeout)
		defer cancel()
	}
	err := s.awaitVM(ctx, vm, func(seen *v1alpha1.VirtualMachine) (bool, error) { return seen == nil, nil })
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%s/%s is not gone after %s: kubectl vm why %s", resourceName, vm.Name, w.timeout, vm.Name)
	}
	return err
}
