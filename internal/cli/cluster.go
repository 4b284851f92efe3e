package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

func (s *session) images() *cobra.Command {
	return s.verb("images", "List the images that nodes keep, and the VirtualMachines made from them", cobra.NoArgs, -1, func(ctx context.Context, _ []string) error {
		hosts, vms, err := s.hostsAndGuests(ctx)
		if err != nil {
			return err
		}
		sizes, nodes := map[string]int64{}, map[string][]string{}
		for _, h := range hosts {
			for _, i := range h.Status.Images {
				sizes[i.Digest], nodes[i.Digest] = max(sizes[i.Digest], value(i.Size)), append(nodes[i.Digest], h.Name)
			}
		}
		names, users := usedBy(vms)
		t := newTable(s.Out, "IMAGE", "DIGEST", "SIZE", "NODES", "USED BY")
		for _, digest := range slices.Sorted(maps.Keys(nodes)) {
			t.row(names[digest], digest, bytesOf(sizes[digest]), listed(nodes[digest]), listed(users[digest]))
		}
		return t.Flush()
	})
}

func (s *session) system() *cobra.Command {
	cmd := &cobra.Command{Use: "system", Short: "Look after the nodes' storage", Args: cobra.NoArgs}
	cmd.AddCommand(s.verb("df", "Show what images and disks take on each node", cobra.NoArgs, -1, func(ctx context.Context, _ []string) error {
		hosts, vms, err := s.hostsAndGuests(ctx)
		if err != nil {
			return err
		}
		_, users := usedBy(vms)
		t := newTable(s.Out, "NODE", "TYPE", "COUNT", "IN USE", "SIZE", "NOTE")
		for _, h := range hosts {
			var all, idle, virtual int64
			var used, disks, running int
			for _, i := range h.Status.Images {
				all += value(i.Size)
				if len(users[i.Digest]) > 0 {
					used++
				} else {
					idle += value(i.Size)
				}
			}
			for _, vm := range vms {
				if vm.Status.NodeName == h.Name {
					disks, virtual = disks+len(vm.Status.Disks), virtual+disksSize(&vm)
					if present(&vm) {
						running += len(vm.Status.Disks)
					}
				}
			}
			t.row(h.Name, "images", fmt.Sprint(len(h.Status.Images)), fmt.Sprint(used), bytesOf(all), bytesOf(idle)+" of no VirtualMachine that you may see")
			t.row(h.Name, "disks", fmt.Sprint(disks), fmt.Sprint(running), bytesOf(virtual), "as their guests see them; they take what was written")
			t.row(h.Name, "stray disks", fmt.Sprint(len(h.Status.StrayDisks)), "0", bytesOf(value(h.Status.StrayDiskSize)), "of VirtualMachines that nobody knows")
		}
		return t.Flush()
	}))
	return cmd
}

// hostsAndGuests are all that the user may see: the guests of one namespace are better than none.
func (s *session) hostsAndGuests(ctx context.Context) ([]v1alpha1.VirtualMachineHost, []v1alpha1.VirtualMachine, error) {
	hosts, err := s.hosts(ctx)
	if err != nil {
		return nil, nil, err
	}
	vms, err := s.list(ctx, "", "")
	if err != nil {
		vms, err = s.list(ctx, s.namespace, "")
	}
	return hosts, vms.Items, err
}

func (s *session) hosts(ctx context.Context) ([]v1alpha1.VirtualMachineHost, error) {
	list := &v1alpha1.VirtualMachineHostList{}
	err := s.api.List(ctx, list)
	return list.Items, err
}

// usedBy tells by an image's digest how VirtualMachines name it, and which.
func usedBy(vms []v1alpha1.VirtualMachine) (names map[string]string, users map[string][]string) {
	names, users = map[string]string{}, map[string][]string{}
	for _, vm := range vms {
		user := vm.Namespace + "/" + vm.Name
		of := vm.Status.Disks
		if k := vm.Status.Kernel; k != nil {
			of = append(of, v1alpha1.DiskStatus{Image: k.Image, ImageDigest: k.ImageDigest})
		}
		for _, d := range of {
			if d.ImageDigest != "" && !slices.Contains(users[d.ImageDigest], user) {
				names[d.ImageDigest], users[d.ImageDigest] = d.Image, append(users[d.ImageDigest], user)
			}
		}
	}
	return names, users
}

func value(q *resource.Quantity) int64 { return cmp.Or(q, &resource.Quantity{}).Value() }

// listed is a list as a table's cell has room for.
func listed(names []string) string {
	slices.Sort(names)
	if len(names) > 3 {
		names = append(names[:3:3], "…")
	}
	return strings.Join(names, ",")
}

func (s *session) stats() *cobra.Command {
	return s.verb("stats [NAME…]", "Show what guests use of processors and memory, beside what their pods request", nil, 0, func(ctx context.Context, args []string) error {
		wanted, err := s.vms(ctx, args)
		if err != nil {
			return err
		}
		pods := &corev1.PodList{}
		if err := s.api.List(ctx, pods, client.InNamespace(s.namespace), client.HasLabels{berth.LabelVM}); err != nil {
			return err
		}
		used, err := s.usage(ctx)
		if err != nil {
			return err
		}
		t := newTable(s.Out, "NAME", "CPU", "REQUESTED", "MEMORY", "REQUESTED", "%")
		for _, pod := range pods.Items {
			name := pod.Labels[berth.LabelVM]
			isWanted := len(args) == 0 || slices.ContainsFunc(wanted, func(vm *v1alpha1.VirtualMachine) bool { return vm.Name == name })
			if !isWanted || len(pod.Spec.Containers) == 0 || pod.Status.Phase != corev1.PodRunning {
				continue
			}
			requests := pod.Spec.Containers[0].Resources.Requests
			cpu, memory, percent := "", "", ""
			if u, isKnown := used[pod.Name]; isKnown {
				cpu, memory = fmt.Sprintf("%dm", u.Cpu().MilliValue()), bytesOf(u.Memory().Value())
				percent = fmt.Sprintf("%d%%", u.Memory().Value()*100/max(requests.Memory().Value(), 1))
			}
			t.row(name, cpu, requests.Cpu().String(), memory, requests.Memory().String(), percent)
		}
		return t.Flush()
	})
}

// usage is what the guests' containers use, by pod, as far as the cluster measures it; it says so if it does not.
func (s *session) usage(ctx context.Context) (map[string]corev1.ResourceList, error) {
	list := &metricsv1beta1.PodMetricsList{}
	err := s.api.List(ctx, list, client.InNamespace(s.namespace), client.HasLabels{berth.LabelVM})
	if meta.IsNoMatchError(err) || apierrors.IsNotFound(err) || apierrors.IsServiceUnavailable(err) || apierrors.IsForbidden(err) {
		fmt.Fprintln(s.ErrOut, "Usage is not known: this cluster has no metrics API (install metrics-server), or not for you.")
		return nil, nil
	}
	used := map[string]corev1.ResourceList{}
	for _, pod := range list.Items {
		for _, c := range pod.Containers {
			if c.Name == berth.Container {
				used[pod.Name] = c.Usage
			}
		}
	}
	return used, err
}

// ownVersion is this program's.
func ownVersion() string {
	if info, isKnown := debug.ReadBuildInfo(); isKnown {
		return info.Main.Version
	}
	return "unknown"
}

func (s *session) version() *cobra.Command {
	var clientOnly bool
	cmd := s.verb("version [--client]", "Print the versions of this program, and of Berth and Kubernetes in the cluster", cobra.NoArgs, -1, func(ctx context.Context, _ []string) error {
		fmt.Fprintf(s.Out, "kubectl-vm   %s, API %s\n", ownVersion(), v1alpha1.GroupVersion)
		if clientOnly {
			return nil
		}
		server, err := s.clients.Discovery().ServerVersion()
		if err != nil {
			return err
		}
		fmt.Fprintf(s.Out, "Kubernetes   %s\n", clean(server.GitVersion))
		operators, err := s.clients.AppsV1().Deployments("").List(ctx, partOfBerth)
		for _, o := range operators.Items {
			fmt.Fprintf(s.Out, "operator     %s\n", clean(versionOf(o.Spec.Template)))
		}
		hosts, failure := s.hosts(ctx)
		if err = errors.Join(err, failure); apierrors.IsForbidden(err) {
			return nil
		}
		t := newTable(s.Out, "NODE", "AGENT", "LIBVIRT", "QEMU", "KERNEL", "ACCELERATION")
		for _, h := range hosts {
			t.row(h.Name, h.Status.AgentVersion, h.Status.LibvirtVersion, h.Status.QEMUVersion, h.Status.KernelVersion, string(h.Status.Acceleration))
		}
		return errors.Join(err, t.Flush())
	})
	cmd.Flags().BoolVar(&clientOnly, "client", false, "Print this program's alone")
	return cmd
}
