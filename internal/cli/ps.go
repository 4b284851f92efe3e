package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func (s *session) ps() *cobra.Command {
	var all, allNamespaces, quiet bool
	var selector string
	flags := printFlags("")
	cmd := s.verb("ps [-a] [-A] [-q] [-l SELECTOR] [-o wide|name|json|yaml|…]", "List guests that run, or are on their way to it", cobra.NoArgs, -1, func(ctx context.Context, _ []string) error {
		if allNamespaces {
			s.namespace = ""
		}
		list, err := s.list(ctx, s.namespace, selector)
		if err != nil {
			return err
		}
		list.Items = slices.DeleteFunc(list.Items, func(vm v1alpha1.VirtualMachine) bool { return !all && !present(&vm) })
		switch format := *flags.OutputFormat; {
		case quiet || format == "name":
			for i := range list.Items {
				if quiet {
					fmt.Fprintln(s.Out, list.Items[i].Name)
				} else if err := s.print(flags, &list.Items[i]); err != nil {
					return err
				}
			}
			return nil
		case format == "" || format == "wide":
			return s.psTable(list, allNamespaces, format == "wide")
		}
		return s.print(flags, list)
	})
	cmd.Flags().BoolVarP(&all, "all", "a", false, "List those without a guest, too")
	cmd.Flags().BoolVarP(&allNamespaces, "all-namespaces", "A", false, "List those of all namespaces")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print names alone")
	cmd.Flags().StringVarP(&selector, "selector", "l", "", "List those with these labels")
	flags.AddFlags(cmd)
	return cmd
}

// list reads the VirtualMachines of a namespace, or of all if it is "".
func (s *session) list(ctx context.Context, namespace, selector string) (*v1alpha1.VirtualMachineList, error) {
	list := &v1alpha1.VirtualMachineList{}
	return list, s.api.List(ctx, list, &client.ListOptions{Namespace: namespace, Raw: &metav1.ListOptions{LabelSelector: selector}})
}

// present: it has a guest, or is about to.
func present(vm *v1alpha1.VirtualMachine) bool {
	return vm.Status.Ended == nil && (vm.Status.Berth != nil || vm.Spec.State != v1alpha1.StateStopped)
}

func (s *session) psTable(list *v1alpha1.VirtualMachineList, namespaces, wide bool) error {
	columns := strings.Fields("NAMESPACE NAME STATUS UP EXITED NODE IP CPU MEMORY SIZE AGE IMAGE RESTARTS TOOLS")
	from, to := 1, len(columns)-3
	if namespaces {
		from = 0
	}
	if wide {
		to = len(columns)
	}
	t := newTable(s.Out, columns[from:to]...)
	for i := range list.Items {
		vm := &list.Items[i]
		status, up, exited, size := string(vm.Status.Phase), "", "", ""
		if c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionReady); c != nil && c.Status != metav1.ConditionTrue && c.Reason != status {
			status += " (" + c.Reason + ")"
		}
		if c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionRunning); c != nil && c.Status == metav1.ConditionTrue {
			up = since(c.LastTransitionTime.Time)
		}
		if e := vm.Status.LastExit; e != nil {
			exited = fmt.Sprintf("%d (%s ago)", e.ExitCode, since(e.Time.Time))
		}
		if sum := disksSize(vm); sum > 0 {
			size = bytesOf(sum)
		}
		address := strings.Join(vm.Status.Addresses[:min(1, len(vm.Status.Addresses))], "")
		t.row([]string{
			vm.Namespace, vm.Name, status, up, exited, vm.Status.NodeName, address,
			fmt.Sprint(vm.Status.VCPUs), vm.Spec.Memory.Size.String(), size, since(vm.CreationTimestamp.Time),
			vm.Status.Image, fmt.Sprint(vm.Status.Restarts), tools(vm),
		}[from:to]...)
	}
	return t.Flush()
}

// disksSize is what all disks of a guest are to it.
func disksSize(vm *v1alpha1.VirtualMachine) (sum int64) {
	for _, d := range vm.Status.Disks {
		sum += value(d.Size)
	}
	return sum
}

// tools is the version of the guest program that has answered, "" if none has.
func tools(vm *v1alpha1.VirtualMachine) string {
	if vm.Status.Guest == nil {
		return ""
	}
	return vm.Status.Guest.Tools
}

func (s *session) inspect() *cobra.Command {
	flags := printFlags("").WithDefaultOutput("yaml")
	cmd := s.verb("inspect NAME… [-o yaml|json|jsonpath=…]", "Show VirtualMachines with their pods, hosts and Events, as one List", cobra.MinimumNArgs(1), 0, func(ctx context.Context, args []string) error {
		vms, err := s.vms(ctx, args)
		if err != nil {
			return err
		}
		list := &corev1.List{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "List"}}
		for _, vm := range vms {
			all, err := s.around(ctx, vm)
			if err != nil {
				return err
			}
			for _, object := range all {
				kind, err := apiutil.GVKForObject(object, s.api.Scheme())
				if err != nil {
					return err
				}
				object.GetObjectKind().SetGroupVersionKind(kind) // a client leaves it out
				object.SetManagedFields(nil)
				list.Items = append(list.Items, runtime.RawExtension{Object: object})
			}
		}
		return s.print(flags, list)
	})
	flags.AddFlags(cmd)
	return cmd
}

// around is a VirtualMachine with what belongs to it, as far as it is there and the user may see it: its pod, its host and
// the Events of both.
func (s *session) around(ctx context.Context, vm *v1alpha1.VirtualMachine) ([]client.Object, error) {
	all := []client.Object{vm}
	pod, err := s.pod(ctx, vm)
	if err != nil {
		return nil, err
	}
	if pod != nil {
		all = append(all, pod)
	}
	withEvents := all
	if vm.Status.NodeName != "" {
		host := &v1alpha1.VirtualMachineHost{}
		if err := s.api.Get(ctx, client.ObjectKey{Name: vm.Status.NodeName}, host); err == nil {
			all = append(all, host)
		} else if !apierrors.IsNotFound(err) && !apierrors.IsForbidden(err) {
			return nil, err
		}
	}
	for _, object := range withEvents {
		events := &corev1.EventList{}
		is := client.MatchingFields{"involvedObject.uid": string(object.GetUID())}
		if err := s.api.List(ctx, events, client.InNamespace(vm.Namespace), is); err != nil && !apierrors.IsForbidden(err) {
			return nil, err
		}
		for i := range events.Items {
			all = append(all, &events.Items[i])
		}
	}
	return all, nil
}

// clean is a text from a cluster as it may stand on a terminal: nothing in it moves the cursor, changes a colour or turns
// the direction of writing.
func clean(text string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case r == unicode.ReplacementChar || unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp):
			return '?'
		}
		return r
	}, text)
}

// table writes columns as kubectl does.
type table struct{ *tabwriter.Writer }

func newTable(out io.Writer, headers ...string) table {
	t := table{tabwriter.NewWriter(out, 6, 4, 3, ' ', 0)}
	t.row(headers...)
	return t
}

func (t table) row(cells ...string) {
	for i, cell := range cells {
		if cells[i] = clean(cell); cell == "" {
			cells[i] = "-"
		}
	}
	fmt.Fprintln(t, strings.Join(cells, "\t"))
}

// since is the age of a moment, as kubectl writes it.
func since(moment time.Time) string { return duration.HumanDuration(time.Since(moment)) }

// bytesOf is a size with a binary unit.
func bytesOf(n int64) string {
	size, unit := float64(n), 0
	for ; size >= 1024 && unit < 5; unit++ {
		size /= 1024
	}
	format := "%.1f%s"
	if unit == 0 || size >= 100 || size == float64(int64(size)) {
		format = "%.0f%s"
	}
	return fmt.Sprintf(format, size, []string{"B", "Ki", "Mi", "Gi", "Ti", "Pi"}[unit])
}
