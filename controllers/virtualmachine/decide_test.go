package virtualmachine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// cores is a change that a berth cannot take.
var cores = []v1alpha1.PendingChange{{Path: "cpu.cores", From: "1", To: "2", Effect: v1alpha1.EffectNewBerth}}

func vm(changes ...func(*v1alpha1.VirtualMachine)) *v1alpha1.VirtualMachine {
	vm := &v1alpha1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "vm-1", Finalizers: []string{berth.DiskFinalizer}},
		Spec: v1alpha1.VirtualMachineSpec{
			State: v1alpha1.StateRunning, RestartPolicy: v1alpha1.RestartAlways,
			Memory: v1alpha1.Memory{Size: resource.MustParse("1Gi")},
			Disks:  []v1alpha1.Disk{{Name: "root", Image: "registry/web:1"}},
		},
		Status: v1alpha1.VirtualMachineStatus{NodeName: "n1", Berth: &v1alpha1.BerthReference{PodName: "web", PodUID: "pod-1"}},
	}
	for _, change := range changes {
		change(vm)
	}
	return vm
}

func stopped(vm *v1alpha1.VirtualMachine)     { vm.Spec.State = v1alpha1.StateStopped }
func deleted(vm *v1alpha1.VirtualMachine)     { vm.DeletionTimestamp = &metav1.Time{Time: now} }
func unkept(vm *v1alpha1.VirtualMachine)      { vm.Finalizers = nil }
func neverPlaced(vm *v1alpha1.VirtualMachine) { vm.Status = v1alpha1.VirtualMachineStatus{} }
func restarted(vm *v1alpha1.VirtualMachine)   { vm.Spec.RestartedAt = "now" }
func released(vm *v1alpha1.VirtualMachine)    { vm.Status.ReleasedBerth = "pod-1" }
func onFailure(vm *v1alpha1.VirtualMachine)   { vm.Spec.RestartPolicy = v1alpha1.RestartOnFailure }
func never(vm *v1alpha1.VirtualMachine)       { vm.Spec.RestartPolicy = v1alpha1.RestartNever }
func withDisk(vm *v1alpha1.VirtualMachine) {
	vm.Status.Disks = []v1alpha1.DiskStatus{{Name: "root"}}
}

func says(kind string, holds bool, reason v1alpha1.Reason) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Conditions = append(vm.Status.Conditions, condition.New(kind, holds, reason, ""))
	}
}

func pod(changes ...func(*corev1.Pod)) *corev1.Pod {
	grace := int64(70)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", UID: "pod-1", Finalizers: []string{berth.PodFinalizer}, CreationTimestamp: metav1.Time{Time: now}},
		Spec:       corev1.PodSpec{NodeName: "n1", TerminationGracePeriodSeconds: &grace},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning},
	}
	for _, change := range changes {
		change(pod)
	}
	return pod
}

func ends(pod *corev1.Pod)      { pod.DeletionTimestamp = &metav1.Time{Time: now} }
func unbound(pod *corev1.Pod)   { pod.Spec.NodeName = "" }
func unleashed(pod *corev1.Pod) { pod.Finalizers = nil }
func failed(pod *corev1.Pod)    { pod.Status.Phase = corev1.PodFailed }
func succeeded(pod *corev1.Pod) { pod.Status.Phase = corev1.PodSucceeded }

func node(changes ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, change := range changes {
		change(n)
	}
	return n
}

func outOfService(n *corev1.Node) {
	n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
}

func TestDecide(t *testing.T) {
	host := &v1alpha1.VirtualMachineHost{}
	host.Status.ReleasedBerths = append(host.Status.ReleasedBerths, "pod-1")
	idle := says(v1alpha1.ConditionRunning, false, v1alpha1.ReasonPoweredOff)
	end := []action{deleteBerth{uid: "pod-1", grace: 70}}
	tests := []struct {
		name string
		seen snapshot
		want []action
	}{
		{"a new VirtualMachine is kept and gets a berth", snapshot{vm: vm(unkept, neverPlaced)}, []action{keepVM{}, createBerth{}}},
		{"a berth that is gone is made again", snapshot{vm: vm(released), node: node()}, []action{createBerth{}}},
		{"where its disks are", snapshot{vm: vm(withDisk, released), node: node()}, []action{createBerth{node: "n1"}}},
		{"not while its guest may be left, whatever became of its pod", snapshot{vm: vm(), node: node()}, nil},
		{"but when its node is out of service", snapshot{vm: vm(), node: node(outOfService)}, []action{createBerth{}}},
		{"or gone", snapshot{vm: vm()}, []action{createBerth{}}},
		{"a stopped one gets none", snapshot{vm: vm(stopped), node: node()}, nil},
		{"a berth is left alone", snapshot{vm: vm(), berth: pod(), node: node()}, nil},
		{"stopping ends the berth", snapshot{vm: vm(stopped), berth: pod(), node: node()}, end},
		{"so does a restart", snapshot{vm: vm(restarted), berth: pod(), node: node()}, end},
		{"so does a deletion", snapshot{vm: vm(deleted), berth: pod(), node: node()}, end},
		{"an ending berth is awaited", snapshot{vm: vm(deleted), berth: pod(ends), node: node()}, nil},
		{"even if it failed", snapshot{vm: vm(), berth: pod(ends, failed), node: node()}, nil},
		{"the agent's word releases it", snapshot{vm: vm(released), berth: pod(ends), node: node()}, []action{releaseBerth{pod(ends)}}},
		{"so does a node that is gone", snapshot{vm: vm(), berth: pod(ends)}, []action{releaseBerth{pod(ends)}}},
		{"or out of service", snapshot{vm: vm(), berth: pod(ends), node: node(outOfService)}, []action{releaseBerth{pod(ends)}}},
		{"and a berth that was never bound", snapshot{vm: vm(), berth: pod(ends, unbound)}, []action{releaseBerth{pod(ends, unbound)}}},
		{"a released berth is not released again", snapshot{vm: vm(released), berth: pod(ends, unleashed), node: node()}, nil},
		{"a changed spec waits while the guest runs", snapshot{vm: vm(says(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted)), berth: pod(), node: node(), outdated: cores}, nil},
		{"and while it is paused", snapshot{vm: vm(says(v1alpha1.ConditionRunning, false, v1alpha1.ReasonPaused)), berth: pod(), node: node(), outdated: cores}, nil},
		{"and while nothing is known of it", snapshot{vm: vm(), berth: pod(), node: node(), outdated: cores}, nil},
		{"and replaces the berth when it does not", snapshot{vm: vm(idle), berth: pod(), node: node(), outdated: cores}, end},
		{"at once if the berth has no node", snapshot{vm: vm(), berth: pod(unbound), outdated: cores}, end},
		{"an altered berth stands for a while", snapshot{vm: vm(), berth: pod(), node: node(), altered: true, now: now.Add(30 * time.Second)}, nil},
		{"and is tried again", snapshot{vm: vm(), berth: pod(), node: node(), altered: true, now: now.Add(time.Minute)}, end},
		{"an evicted guest comes back", snapshot{vm: vm(), berth: pod(failed), node: node()}, end},
		{"also under OnFailure", snapshot{vm: vm(onFailure), berth: pod(failed), node: node()}, end},
		{"not under Never", snapshot{vm: vm(never), berth: pod(failed), node: node()}, nil},
		{"one that succeeded stays so", snapshot{vm: vm(onFailure), berth: pod(succeeded), node: node()}, nil},
		{"even if its spec changes", snapshot{vm: vm(never, idle), berth: pod(succeeded), node: node(), outdated: cores}, nil},
		{"a deleted VirtualMachine waits for its disks", snapshot{vm: vm(deleted), node: node()}, nil},
		{"and goes with them", snapshot{vm: vm(deleted, says(v1alpha1.ConditionDisksReady, false, v1alpha1.ReasonDisksRemoved)), node: node()}, []action{releaseVM{}}},
		{"or with its node", snapshot{vm: vm(deleted)}, []action{releaseVM{}}},
		{"or at once if it never had one", snapshot{vm: vm(deleted, neverPlaced)}, []action{releaseVM{}}},
		{"a berth without its VirtualMachine is ended", snapshot{orphan: pod(), node: node()}, end},
		{"and released on the host's word", snapshot{orphan: pod(ends), node: node(), host: host}, []action{releaseBerth{pod(ends)}}},
		{"not without it", snapshot{orphan: pod(ends), node: node()}, nil},
		{"nobody and nothing", snapshot{}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.seen.berth != nil {
				tt.seen.berth.Annotations = map[string]string{berth.AnnotationRestartedAt: ""}
			}
			got := decide(tt.seen)
			opts := cmp.Options{cmp.AllowUnexported(createBerth{}, deleteBerth{}, releaseBerth{}), cmpopts.IgnoreFields(corev1.Pod{}, "ObjectMeta.Annotations")}
			if diff := cmp.Diff(tt.want, got, opts); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
