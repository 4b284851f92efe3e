package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/kubelet"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
)

// maxListed bounds the lists in a host's status.
const maxListed = 100

// snapshot is what one reconcile reads of the host.
type snapshot struct {
	host   *v1alpha1.VirtualMachineHost       // has no UID while there is none
	status *v1alpha1.VirtualMachineHostStatus // what is reported as it is read; what cannot be read is as it was

	strays         []stray
	storeErr       error // why the store cannot be used
	facts          libvirtd.HostFacts
	factsKnown     bool
	factsErr       error
	foreignRunning []string // running domains that are not Berth's
	foreignErr     error
	kubelet        kubelet.Config
	kubeletErr     error
	volumesErr     error // why volumes cannot be attached

	qemuConf, cpuinfo, selinux file
}

// file is a file's text, or why it cannot be read.
type file struct {
	text string
	err  error
}

// observe reads the host. It fails only if the API server cannot say what was reported of it.
func (r *Reconciler) observe(ctx context.Context) (snapshot, error) {
	seen := snapshot{host: r.object(), storeErr: r.Store.Check()}
	if err := r.Client.Get(ctx, client.ObjectKeyFromObject(seen.host), seen.host); client.IgnoreNotFound(err) != nil {
		return seen, fmt.Errorf("reading VirtualMachineHost: %w", err)
	}
	seen.facts, seen.factsKnown, seen.factsErr = r.Facts() //nolint:contextcheck // libvirt is asked in the background, which ends with the agent
	s := seen.host.Status.DeepCopy()
	seen.status = s
	id, err := r.Store.Identify(s.StoreID) // also of a disk that takes no file: what is on it may be read
	if err == nil {
		s.StoreID = id
	} else if seen.storeErr == nil {
		seen.storeErr = err
	}
	s.BootID, s.KernelVersion = sysctl("kernel/random/boot_id"), sysctl("kernel/osrelease")
	if size, percent, err := r.Store.Usage(); err == nil {
		s.StoreCapacity, s.StoreUsedPercent = resource.NewQuantity(size, resource.BinarySI), &percent
	}
	s.Images, s.ReleasedBerths = r.images(s.Images), r.releasedBerths(ctx, s.ReleasedBerths)
	seen.strays = r.observeStrays(ctx, s)
	s.ForeignDomains, seen.foreignRunning, seen.foreignErr = r.foreignDomains(ctx, s.ForeignDomains)
	// Distributions that have it inside of a process of their own (k3s, RKE2) have no kubelet of that name.
	pid, args, err := process.Named("kubelet")
	if err == nil {
		seen.kubelet, err = kubelet.Read(pid, args)
	}
	seen.kubeletErr = err
	seen.volumesErr = r.CheckVolumes(ctx)
	root, err := r.Libvirt.Root()
	seen.qemuConf, seen.selinux = readFile(root, "etc/libvirt/qemu.conf", err), readFile(root, "sys/fs/selinux/enforce", err)
	seen.cpuinfo = readFile("/proc", "cpuinfo", nil)
	return seen, nil
}

func sysctl(name string) string { return strings.TrimSpace(readFile("/proc/sys", name, nil).text) }

// readFile reads a file below root, unless that is unknown. One that is absent is empty.
func readFile(root, path string, rootErr error) file {
	if rootErr != nil {
		return file{err: rootErr}
	}
	raw, err := os.ReadFile(filepath.Join(root, path))
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return file{string(raw), err}
}

// foreignDomains are the names of those that are not ours, and of those of them that run.
func (r *Reconciler) foreignDomains(ctx context.Context, old []string) (all, running []string, err error) {
	domains, err := r.Libvirt.States(ctx)
	if err != nil {
		return old, nil, err
	}
	for uuid, d := range domains {
		if !r.IsOurs(ctx, uuid) {
			all = append(all, d.Name)
			if d.ID >= 0 {
				running = append(running, d.Name)
			}
		}
	}
	return bounded(all, maxListed), bounded(running, maxListed), nil
}

// IsOurs tells whether a domain is Berth's, by its metadata.
func (r *Reconciler) IsOurs(ctx context.Context, uuid string) bool {
	if has, err := r.Store.Has(uuid); err == nil && has {
		return true
	}
	found, err := r.Libvirt.Domain(ctx, uuid)
	if err != nil || !found.Exists {
		return false
	}
	facts, err := domain.ParseFacts(found.XML)
	return err == nil && facts.Identity != nil
}

func (r *Reconciler) images(old []v1alpha1.HostImage) []v1alpha1.HostImage {
	images, err := r.Store.Images()
	if err != nil {
		return old
	}
	slices.SortStableFunc(images, func(a, b store.Image) int { // those that are in use, and then those that were last
		if a.LastUse.IsZero() || b.LastUse.IsZero() {
			return a.LastUse.Compare(b.LastUse)
		}
		return b.LastUse.Compare(a.LastUse)
	})
	var list []v1alpha1.HostImage
	for _, i := range images[:min(len(images), maxListed)] {
		one := v1alpha1.HostImage{Digest: i.Digest, Size: resource.NewQuantity(i.Allocated, resource.BinarySI)}
		if !i.LastUse.IsZero() {
			one.LastUsed = &metav1.Time{Time: i.LastUse.Truncate(time.Second)}
		}
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b v1alpha1.HostImage) int { return strings.Compare(a.Digest, b.Digest) })
	return list
}

// releasedBerths are the terminating berths of which no process is left and that no VirtualMachine's status names: the
// VirtualMachine is gone, or its berth is another pod, where its guest may run. The berth that it names is reported in its
// own status.
func (r *Reconciler) releasedBerths(ctx context.Context, old []types.UID) []types.UID {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods); err != nil {
		return old
	}
	var uids []types.UID
	for i := range pods.Items {
		pod := &pods.Items[i]
		owner, ours := berth.OwnerUID(pod)
		if !ours || pod.DeletionTimestamp.IsZero() || !slices.Contains(pod.Finalizers, berth.PodFinalizer) {
			continue
		}
		if slices.Contains(old, pod.UID) { // what is proven stays so
			uids = append(uids, pod.UID)
			continue
		}
		vm, err := r.VirtualMachine(ctx, owner)
		if err != nil || vm != nil && vm.Status.Berth != nil && vm.Status.Berth.PodUID == pod.UID {
			continue
		}
		if len(uids) < maxListed && r.provenEmpty(pod.UID, owner) {
			uids = append(uids, pod.UID)
		}
	}
	return bounded(uids, maxListed)
}

// provenEmpty: each QEMU of the guest is in another pod's container. One that is in none may be about to be placed.
func (r *Reconciler) provenEmpty(pod, vm types.UID) bool {
	qemus, err := r.FindQEMU(string(vm))
	return err == nil && !slices.ContainsFunc(qemus, func(q process.Process) bool {
		in, err := r.PodOf(q.PID)
		return err != nil || in == "" || in == pod
	})
}

// bounded sorts a list, whose order means nothing, and keeps the first of it.
func bounded[T ~string](list []T, limit int) []T {
	list = slices.Compact(slices.Sorted(slices.Values(list)))
	return list[:min(len(list), limit)]
}
