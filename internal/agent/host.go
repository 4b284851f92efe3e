package agent

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/kube"
)

// Oldest versions that Berth works with.
var (
	minLibvirt = [2]int{8, 0}
	minQEMU    = [2]int{6, 2}
	minKernel  = [2]int{5, 6} // pidfd_getfd
)

const (
	// hostLook is how often the host is looked at though nothing happened.
	hostLook = 5 * time.Minute
	// troubledLook is the same while no guest can start on it: most of what mends a host cannot be heard.
	troubledLook = 15 * time.Second
	// maxListed bounds the lists in a host's status.
	maxListed = 100
)

// setupHost makes the loop that keeps this node's VirtualMachineHost true. It has one key.
func (a *Agent) setupHost(mgr ctrl.Manager) error {
	loop, err := controller.NewTyped("host", mgr, controller.TypedOptions[types.UID]{
		Reconciler: reconcile.TypedFunc[types.UID](func(ctx context.Context, _ types.UID) (ctrl.Result, error) {
			wake, err := a.syncHost(ctx)
			return kube.Outcome(err, wake)
		}),
	})
	if err != nil {
		return fmt.Errorf("making the host's loop: %w", err)
	}
	key := func(client.Object) types.UID { return types.UID(a.Node) }
	own := onGuest[*v1alpha1.VirtualMachineHost](func(h *v1alpha1.VirtualMachineHost) types.UID { return key(h) })
	if err := loop.Watch(source.TypedKind(mgr.GetCache(), &v1alpha1.VirtualMachineHost{}, own)); err != nil {
		return fmt.Errorf("watching the host: %w", err)
	}
	return loop.Watch(source.TypedFunc[types.UID](func(_ context.Context, q queue) error {
		a.hostQueue = q
		q.Add(types.UID(a.Node))
		return nil
	}))
}

// wakeHost has the host looked at.
func (a *Agent) wakeHost() {
	if a.hostQueue != nil {
		a.hostQueue.Add(types.UID(a.Node))
	}
}

// syncHost reports what this host is and has, and whether guests can start on it. It returns when to look again.
func (a *Agent) syncHost(ctx context.Context) (time.Duration, error) {
	var host v1alpha1.VirtualMachineHost
	err := a.client.Get(ctx, types.NamespacedName{Name: a.Node}, &host)
	if client.IgnoreNotFound(err) != nil {
		return 0, fmt.Errorf("reading host: %w", err)
	}
	if err != nil {
		host = v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: a.Node}}
		err := a.client.Create(ctx, &host)
		if apierrors.IsAlreadyExists(err) {
			return time.Second, nil // the cache is behind
		}
		if err != nil {
			return 0, fmt.Errorf("making host %s: %w", a.Node, err)
		}
	}
	want, wake := a.hostStatus(ctx, &host)
	_, err = a.status.Write(ctx, &host, want, &host.Status)
	return wake, err
}

// hostStatus is what can be said of the host now, and when to look again. What cannot be read stays as it was.
func (a *Agent) hostStatus(ctx context.Context, host *v1alpha1.VirtualMachineHost) (*v1alpha1.VirtualMachineHostStatus, time.Duration) {
	had := host.Status
	s := had.DeepCopy()
	s.Acceleration, s.AgentVersion, s.BootID, s.KernelVersion = a.Acceleration, a.Version, bootID(), kernelVersion()
	s.Images, s.StrayDisks, s.ReleasedBerths = a.hostImages(had.Images), a.strayDisks(ctx, had.StrayDisks), a.releasedBerths(ctx, had.ReleasedBerths)
	s.ForeignDomains = a.foreignDomains(ctx, had.ForeignDomains)

	facts, known, err := a.facts.now(a.now(), a.askFacts)
	if known && err == nil {
		s.LibvirtVersion, s.QEMUVersion, s.CPUs = facts.LibvirtVersion, facts.QEMUVersion, facts.CPUs
		s.Memory = resource.NewQuantity(facts.Memory, resource.BinarySI)
		s.MachineTypes, s.CPUModels = bounded(facts.MachineTypes, 256), nil
		if v := a.virt(facts); v != nil {
			s.CPUModels = bounded(v.CPUModels, 256)
		}
	}
	ready := condition.Unknown(v1alpha1.ConditionHostReady, v1alpha1.ReasonStarting, "libvirt is asked what this host can do")
	if old := meta.FindStatusCondition(had.Conditions, v1alpha1.ConditionHostReady); old != nil {
		ready = *old
	}
	switch failure := a.store.Check(); {
	case failure != nil:
		ready = condition.New(v1alpha1.ConditionHostReady, false, fault.ReasonOf(failure), failure.Error())
	case known:
		ready = a.ready(facts, err)
	}
	s.Problems = nil
	if ready.Status == metav1.ConditionFalse {
		s.Problems = append(s.Problems, v1alpha1.HostProblem{Name: ready.Reason, Blocking: true, Message: ready.Message})
	}
	s.Problems = append(s.Problems, problems(a.checks(ctx, s), had.Problems)...)
	sound := condition.New(v1alpha1.ConditionWellConfigured, true, v1alpha1.ReasonWellConfigured, "")
	if len(s.Problems) > 0 {
		sound = condition.New(v1alpha1.ConditionWellConfigured, false, v1alpha1.ReasonMisconfigured, s.Problems[0].Message)
	}
	s.Conditions = condition.Carry([]metav1.Condition{ready, sound}, had.Conditions, host.Generation, a.now())
	if ready.Status != metav1.ConditionTrue || !known {
		return s, troubledLook
	}
	return s, hostLook
}

func (a *Agent) virt(facts libvirtd.HostFacts) *libvirtd.Virt {
	if a.Acceleration == v1alpha1.AccelerationEmulation {
		return facts.Emulation
	}
	return facts.KVM
}

// ready says whether guests can start here.
func (a *Agent) ready(facts libvirtd.HostFacts, err error) metav1.Condition {
	no := func(reason v1alpha1.Reason, format string, args ...any) metav1.Condition {
		return condition.New(v1alpha1.ConditionHostReady, false, reason, fmt.Sprintf(format, args...))
	}
	switch {
	case olderThan(kernelVersion(), minKernel):
		return no(v1alpha1.ReasonKernelTooOld, "the kernel is %s: Berth needs %d.%d", kernelVersion(), minKernel[0], minKernel[1])
	case err != nil:
		return no(v1alpha1.ReasonLibvirtUnreachable, "%v", err)
	case olderThan(facts.LibvirtVersion, minLibvirt):
		return no(v1alpha1.ReasonLibvirtTooOld, "libvirt is %s: Berth needs %d.%d", facts.LibvirtVersion, minLibvirt[0], minLibvirt[1])
	case olderThan(facts.QEMUVersion, minQEMU):
		return no(v1alpha1.ReasonLibvirtTooOld, "QEMU is %s: Berth needs %d.%d", facts.QEMUVersion, minQEMU[0], minQEMU[1])
	case facts.StateDirClosed != nil:
		return no(v1alpha1.ReasonStateDirClosed, "%v: let others pass by dpkg-statoverride --update --add libvirt-qemu libvirt-qemu 0751 /var/lib/libvirt/qemu, or by chmod o+x where there is no dpkg", facts.StateDirClosed)
	case a.Acceleration == v1alpha1.AccelerationKVM && facts.KVM == nil:
		return no(v1alpha1.ReasonKVMUnavailable, "KVM cannot be used: %v; enable virtualisation in the firmware, load kvm_intel or kvm_amd, and let the group kvm use /dev/kvm; or set agent.acceleration to Emulation", facts.WhyNoKVM)
	case a.virt(facts) == nil:
		return no(v1alpha1.ReasonLibvirtTooOld, "QEMU for x86_64 is missing: install qemu-system-x86")
	}
	return condition.New(v1alpha1.ConditionHostReady, true, v1alpha1.ReasonHostReady, "")
}

// foreignDomains are the names of those that are not ours.
func (a *Agent) foreignDomains(ctx context.Context, had []string) []string {
	domains, err := a.libvirt.Domains(ctx)
	if err != nil {
		return had
	}
	var names []string
	for _, d := range domains {
		if !a.isOurs(ctx, d.UUID) {
			names = append(names, d.Name)
		}
	}
	return bounded(names, maxListed)
}

// isOurs tells whether a domain is Berth's, by its metadata.
func (a *Agent) isOurs(ctx context.Context, uuid string) bool {
	if has, err := a.store.Has(uuid); err == nil && has {
		return true
	}
	found, err := a.libvirt.Domain(ctx, uuid)
	if err != nil || !found.Exists {
		return false
	}
	facts, err := domain.ParseFacts(found.XML)
	return err == nil && facts.Identity != nil
}

func (a *Agent) hostImages(had []v1alpha1.HostImage) []v1alpha1.HostImage {
	images, err := a.store.Images()
	if err != nil {
		return had
	}
	var list []v1alpha1.HostImage
	for _, i := range images {
		list = append(list, v1alpha1.HostImage{Digest: i.Digest, Size: resource.NewQuantity(i.Allocated, resource.BinarySI)})
	}
	slices.SortFunc(list, func(a, b v1alpha1.HostImage) int { return strings.Compare(a.Digest, b.Digest) })
	return list[:min(len(list), maxListed)]
}

// strayDisks are the disks of guests that the API server does not know, say after it was restored from a backup.
func (a *Agent) strayDisks(ctx context.Context, had []string) []string {
	guests, err := a.store.List()
	if err != nil {
		return had
	}
	var stray []string
	for _, g := range guests {
		name := fmt.Sprintf("%s/%s %s", g.Namespace, g.Name, g.UID)
		vm, err := a.virtualMachine(ctx, types.UID(g.UID))
		if err == nil && vm == nil || err != nil && slices.Contains(had, name) {
			stray = append(stray, name)
		}
	}
	return bounded(stray, maxListed)
}

// releasedBerths are the ending berths whose VirtualMachine is gone, and of which no process is left.
func (a *Agent) releasedBerths(ctx context.Context, had []types.UID) []types.UID {
	var pods corev1.PodList
	if err := a.client.List(ctx, &pods); err != nil {
		return had
	}
	var uids []types.UID
	for i := range pods.Items {
		pod := &pods.Items[i]
		owner, ours := berth.OwnerUID(pod)
		if !ours || pod.DeletionTimestamp.IsZero() || !slices.Contains(pod.Finalizers, berth.PodFinalizer) {
			continue
		}
		if slices.Contains(had, pod.UID) { // what is proven stays so
			uids = append(uids, pod.UID)
			continue
		}
		if vm, err := a.virtualMachine(ctx, owner); err != nil || vm != nil {
			continue
		}
		if left, err := process.Find(string(owner)); err == nil && len(left) == 0 && len(uids) < maxListed {
			uids = append(uids, pod.UID)
		}
	}
	return uids
}

func bounded(list []string, limit int) []string {
	list = slices.Clone(list)
	slices.Sort(list)
	list = slices.Compact(list)
	return list[:min(len(list), limit)]
}

func kernelVersion() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

func bootID() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}

// olderThan compares the first two numbers of a version. One that cannot be read is not older.
func olderThan(version string, least [2]int) bool {
	var have [2]int
	if n, _ := fmt.Sscanf(version, "%d.%d", &have[0], &have[1]); n != 2 {
		return false
	}
	return have[0] < least[0] || have[0] == least[0] && have[1] < least[1]
}
