package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func (s *session) ps() *cobra.Command {
	var all, allNamespaces, quiet bool
	var selector string
	flags := printFlags("")
	cmd := &cobra.Command{
		Use:               "ps [-a] [-A] [-l SELECTOR] [-o wide|json|yaml|name|…]",
		Aliases:           []string{"ls"},
		Short:             "List guests that run, or are on their way to it",
		Example:           "  kubectl vm ps\n  kubectl vm ps -a -o wide\n  kubectl vm rm $(kubectl vm ps -aq)",
		Args:              cobra.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := s.list(cmd.Context(), allNamespaces, selector)
			if err != nil {
				return err
			}
			if !all {
				listed := list.Items[:0]
				for _, vm := range list.Items {
					if present(&vm) {
						listed = append(listed, vm)
					}
				}
				list.Items = listed
			}
			switch format := *flags.OutputFormat; {
			case quiet:
				for _, vm := range list.Items {
					fmt.Fprintln(s.Out, vm.Name)
				}
				return nil
			case format == "" || format == "wide":
				s.psTable(list, allNamespaces, format == "wide")
				return nil
			case format == "name":
				for i := range list.Items {
					if err := s.print(flags, &list.Items[i]); err != nil {
						return err
					}
				}
				return nil
			}
			return s.print(flags, list)
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "List those without a guest, too")
	cmd.Flags().BoolVarP(&allNamespaces, "all-namespaces", "A", false, "List those of all namespaces")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print names alone")
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "List those with these labels")
	flags.AddFlags(cmd)
	return cmd
}

// list reads VirtualMachines, of the session's namespace or of all.
func (s *session) list(ctx context.Context, allNamespaces bool, selector string) (*v1alpha1.VirtualMachineList, error) {
	if err := s.connect(); err != nil {
		return nil, err
	}
	list := &v1alpha1.VirtualMachineList{}
	o := &client.ListOptions{Namespace: s.namespace, Raw: &metav1.ListOptions{LabelSelector: selector}}
	if allNamespaces {
		o.Namespace = ""
	}
	return list, s.api.List(ctx, list, o)
}

// present: it has a guest, or is about to.
func present(vm *v1alpha1.VirtualMachine) bool {
	return vm.Status.Berth != nil && vm.Status.Ended == nil || vm.Spec.State != v1alpha1.StateStopped && vm.Status.Ended == nil
}

func (s *session) psTable(list *v1alpha1.VirtualMachineList, namespaces, wide bool) {
	headers := []string{"NAME", "STATUS", "UP", "EXITED", "NODE", "IP", "CPU", "MEMORY", "SIZE", "AGE"}
	if namespaces {
		headers = append([]string{"NAMESPACE"}, headers...)
	}
	if wide {
		headers = append(headers, "IMAGE", "RESTARTS", "TOOLS")
	}
	t := newTable(s.Out, headers...)
	for i := range list.Items {
		vm := &list.Items[i]
		row := []string{
			vm.Name, status(vm), up(vm), exited(vm), vm.Status.NodeName, address(vm), fmt.Sprint(vm.Status.VCPUs), vm.Spec.Memory.Size.String(),
			disksSize(vm), since(vm.CreationTimestamp.Time),
		}
		if namespaces {
			row = append([]string{vm.Namespace}, row...)
		}
		if wide {
			row = append(row, vm.Status.Image, fmt.Sprint(vm.Status.Restarts), tools(vm))
		}
		t.row(row...)
	}
	_ = t.Flush()
}

// status is the phase, with what is in the way.
func status(vm *v1alpha1.VirtualMachine) string {
	c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionReady)
	if c == nil || c.Status == metav1.ConditionTrue || c.Reason == string(vm.Status.Phase) {
		return string(vm.Status.Phase)
	}
	return fmt.Sprintf("%s (%s)", vm.Status.Phase, c.Reason)
}

// up is for how long the guest has run.
func up(vm *v1alpha1.VirtualMachine) string {
	if c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionRunning); c != nil && c.Status == metav1.ConditionTrue {
		return since(c.LastTransitionTime.Time)
	}
	return ""
}

// exited is the code of the guest's last end, and when that was.
func exited(vm *v1alpha1.VirtualMachine) string {
	if e := vm.Status.LastExit; e != nil {
		return fmt.Sprintf("%d (%s ago)", e.ExitCode, since(e.Time.Time))
	}
	return ""
}

func address(vm *v1alpha1.VirtualMachine) string {
	if len(vm.Status.Addresses) == 0 {
		return ""
	}
	return vm.Status.Addresses[0]
}

// disksSize is what all disks of a guest are to it.
func disksSize(vm *v1alpha1.VirtualMachine) string {
	var sum int64
	for _, d := range vm.Status.Disks {
		if d.Size != nil {
			sum += d.Size.Value()
		}
	}
	if sum == 0 {
		return ""
	}
	return bytesOf(sum)
}
