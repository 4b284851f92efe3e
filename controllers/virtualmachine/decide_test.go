package virtualmachine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
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

func stopped(vm *v1alpha1.VirtualMachine)        { vm.Spec.State = v1alpha1.StateStopped }
func deleted(vm *v1alpha1.VirtualMachine)        { vm.DeletionTimestamp = &metav1.Time{Time: now} }
func noFinalizer(vm *v1alpha1.VirtualMachine)    { vm.Finalizers = nil }
func neverScheduled(vm *v1alpha1.VirtualMachine) { vm.Status = v1alpha1.VirtualMachineStatus{} }
func restarted(vm *v1alpha1.VirtualMachine)      { vm.Spec.RestartedAt = "now" }
func released(vm *v1alpha1.VirtualMachine)       { vm.Status.ReleasedBerth = "pod-1" }
func onFailure(vm *v1alpha1.VirtualMachine)      { vm.Spec.RestartPolicy = v1alpha1.RestartOnFailure }
func never(vm *v1alpha1.VirtualMachine)          { vm.Spec.RestartPolicy = v1alpha1.RestartNever }
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

func ended(phase v1alpha1.Phase) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) {
		vm.Status.Ended = &v1alpha1.Ended{Phase: phase, Reason: v1alpha1.ReasonPoweredOff}
	}
}

// endedAt is as the operator writes it of a guest that powered itself off.
func endedAt(at time.Time) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) {
		ended(v1alpha1.PhaseSucceeded)(vm)
		vm.Status.Ended.Time = new(metav1.NewTime(at))
	}
}

func ttl(seconds int32) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) { vm.Spec.TTLSecondsAfterFinished = &seconds }
}

// endedAs is what the shim said of the guest's end. It was before the deletionTimestamp, which the API server moves when
// kubelet takes its last step.
func endedAs(reason v1alpha1.Reason) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		state := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			FinishedAt: metav1.Time{Time: now.Add(-time.Second)},
			Message:    shimproto.Exit{Reason: string(reason), Message: "in more words"}.TerminationMessage(),
		}}
		pod.Status.ContainerStatuses, pod.DeletionGracePeriodSeconds = []corev1.ContainerStatus{{Name: "guest", State: state}}, new(int64(0))
	}
}

func ends(pod *corev1.Pod)             { pod.DeletionTimestamp = &metav1.Time{Time: now} }
func withoutNode(pod *corev1.Pod)      { pod.Spec.NodeName = "" }
func withoutFinalizer(pod *corev1.Pod) { pod.Finalizers = nil }
func failed(pod *corev1.Pod)           { pod.Status.Phase = corev1.PodFailed }
func succeeded(pod *corev1.Pod)        { pod.Status.Phase = corev1.PodSucceeded }

func isEvicted(pod *corev1.Pod) {
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue})
}

func node(changes ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionTrue}}
	for _, change := range changes {
		change(n)
	}
	return n
}

func tainted(n *corev1.Node) {
	n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
}

func TestDecide(t *testing.T) {
	host := &v1alpha1.VirtualMachineHost{}
	host.Status.ReleasedBerths = append(host.Status.ReleasedBerths, "pod-1")
	idle := says(v1alpha1.ConditionRunning, false, v1alpha1.ReasonPoweredOff)
	oldShim := says(v1alpha1.ConditionRunning, false, v1alpha1.ReasonShimOutdated)
	ofShim := func(tag string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers = []corev1.Container{{Image: "mirror/berth-shim:" + tag}} }
	}
	end, letGo := []action{deleteBerth{pod(), 70}}, []action{removeBerthFinalizer{pod()}}
	other := func(changes ...func(*corev1.Pod)) *corev1.Pod { // another pod, on another node
		return pod(append([]func(*corev1.Pod){func(p *corev1.Pod) { p.Name, p.UID, p.Spec.NodeName = "web-2", "pod-2", "n2" }}, changes...)...)
	}
	surplus := func(pod *corev1.Pod, node *corev1.Node, host *v1alpha1.VirtualMachineHost) []placedBerth {
		return []placedBerth{{pod, node, host}}
	}
	otherHost := &v1alpha1.VirtualMachineHost{}
	otherHost.Status.ReleasedBerths = append(otherHost.Status.ReleasedBerths, "pod-2")
	tests := []struct {
		name string
		seen snapshot
		want []action
	}{
		{"a new VirtualMachine gets a berth and is kept", snapshot{vm: vm(noFinalizer, neverScheduled)}, []action{createBerth{}, addFinalizer{}}},
		{"a VirtualMachine is kept before its status names a berth", snapshot{vm: vm(noFinalizer, neverScheduled), berth: pod()}, []action{addFinalizer{}}},
		{"one that is not kept and is to stop needs no finalizer", snapshot{vm: vm(noFinalizer, neverScheduled, stopped), berth: pod()}, []action{deleteBerth{pod(), 70}}},
		{"one whose finalizer was taken off is kept again", snapshot{vm: vm(noFinalizer), berth: pod(), node: node()}, []action{addFinalizer{}}},
		{"also if it is stopped", snapshot{vm: vm(noFinalizer, stopped, released), node: node()}, []action{addFinalizer{}}},
		{"or stops", snapshot{vm: vm(noFinalizer, stopped), berth: pod(), node: node()}, []action{deleteBerth{pod(), 70}, addFinalizer{}}},
		{"or waits for its former berth", snapshot{vm: vm(noFinalizer), node: node()}, []action{addFinalizer{}}},
		{"not if it is being deleted", snapshot{vm: vm(noFinalizer, deleted), node: node()}, nil},
		{"a berth that is gone is made again", snapshot{vm: vm(released), node: node()}, []action{createBerth{}}},
		{"where its disks are", snapshot{vm: vm(withDisk, released), node: node()}, []action{createBerth{node: "n1"}}},
		{"not while its guest may be left, whatever became of its pod", snapshot{vm: vm(), node: node()}, nil},
		{"but when its node is out of service", snapshot{vm: vm(), node: node(tainted)}, []action{createBerth{}}},
		{"or gone", snapshot{vm: vm()}, []action{createBerth{}}},
		{"a stopped one gets none", snapshot{vm: vm(stopped), node: node()}, nil},
		{"a berth is left alone", snapshot{vm: vm(), berth: pod(), node: node()}, nil},
		{"stopping ends the berth", snapshot{vm: vm(stopped), berth: pod(), node: node()}, end},
		{"so does a restart", snapshot{vm: vm(restarted), berth: pod(), node: node()}, end},
		{"so does a deletion", snapshot{vm: vm(deleted), berth: pod(), node: node()}, end},
		{"an ending berth is awaited", snapshot{vm: vm(deleted), berth: pod(ends), node: node()}, nil},
		{"even if it failed", snapshot{vm: vm(), berth: pod(ends, failed), node: node()}, nil},
		{"the agent's word releases it", snapshot{vm: vm(released), berth: pod(ends), node: node()}, letGo},
		{"so does a node that is gone", snapshot{vm: vm(), berth: pod(ends)}, letGo},
		{"or out of service", snapshot{vm: vm(), berth: pod(ends), node: node(tainted)}, letGo},
		{"and a berth that was never bound", snapshot{vm: vm(), berth: pod(ends, withoutNode)}, letGo},
		{"a released berth is not released again", snapshot{vm: vm(released), berth: pod(ends, withoutFinalizer), node: node()}, nil},
		{"a changed spec waits while the guest runs", snapshot{vm: vm(says(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted)), berth: pod(), node: node(), outdated: cores}, nil},
		{"and while it is paused", snapshot{vm: vm(says(v1alpha1.ConditionRunning, false, v1alpha1.ReasonPaused)), berth: pod(), node: node(), outdated: cores}, nil},
		{"and while nothing is known of it", snapshot{vm: vm(), berth: pod(), node: node(), outdated: cores}, nil},
		{"and replaces the berth when it does not", snapshot{vm: vm(idle), berth: pod(), node: node(), outdated: cores}, end},
		{"at once if the berth has no node", snapshot{vm: vm(), berth: pod(withoutNode), outdated: cores}, end},
		{"a berth whose shim is too old for its guest is replaced", snapshot{vm: vm(oldShim), berth: pod(ofShim("1")), node: node(), shimImage: "registry/berth-shim:2"}, end},
		{"not by one with the same shim", snapshot{vm: vm(oldShim), berth: pod(ofShim("2")), node: node(), shimImage: "registry/berth-shim:2"}, nil},
		{"and not while its guest runs", snapshot{vm: vm(says(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted)), berth: pod(ofShim("1")), node: node(), shimImage: "registry/berth-shim:2"}, nil},
		{"a berth that is not as it was made stands for a while", snapshot{vm: vm(neverScheduled), berth: pod(), node: node(), mutation: "x", now: now.Add(30 * time.Second)}, nil},
		{"and is tried again", snapshot{vm: vm(neverScheduled), berth: pod(), node: node(), mutation: "x", now: now.Add(time.Minute)}, []action{deleteBerth{pod(), 1}}},
		{"also one that was changed later", snapshot{vm: vm(idle), berth: pod(), node: node(), mutation: "x", now: now.Add(time.Minute)}, end},
		{"but never one in which a guest runs", snapshot{vm: vm(says(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted)), berth: pod(), node: node(), mutation: "x", now: now.Add(time.Hour)}, nil},
		{"or may run", snapshot{vm: vm(), berth: pod(), node: node(), mutation: "x", now: now.Add(time.Hour)}, nil},
		{"a berth that is not where the disks are is replaced at once", snapshot{vm: vm(withDisk, released), berth: other(), node: node(), misplaced: true}, []action{deleteBerth{other(), 1}}},
		{"an evicted guest comes back", snapshot{vm: vm(), berth: pod(failed), node: node()}, end},
		{"also under OnFailure", snapshot{vm: vm(onFailure), berth: pod(failed), node: node()}, end},
		{"not under Never", snapshot{vm: vm(never), berth: pod(failed), node: node()}, nil},
		{"one that succeeded stays so", snapshot{vm: vm(onFailure), berth: pod(succeeded), node: node()}, nil},
		{"even if its spec changes", snapshot{vm: vm(never, idle), berth: pod(succeeded), node: node(), outdated: cores}, nil},
		{"a guest that has ended for good is not run again when its pod is gone", snapshot{vm: vm(never, released, ended(v1alpha1.PhaseSucceeded)), node: node()}, nil},
		{"nor when its node is", snapshot{vm: vm(never, ended(v1alpha1.PhaseFailed))}, nil},
		{"nor under OnFailure if it succeeded", snapshot{vm: vm(onFailure, released, ended(v1alpha1.PhaseSucceeded)), node: node()}, nil},
		{"nor when that and its berth are taken away, once the status tells", snapshot{vm: vm(never, ended(v1alpha1.PhaseSucceeded)), berth: pod(ends, succeeded, endedAs(v1alpha1.ReasonPoweredOff))}, letGo},
		{"nor when Kubernetes collects its pod, which has no more to say", snapshot{vm: vm(never, released, ended(v1alpha1.PhaseSucceeded)), berth: pod(ends, succeeded), node: node()}, letGo},
		{"nor when its pod is evicted after its end", snapshot{vm: vm(onFailure, released, ended(v1alpha1.PhaseSucceeded)), berth: pod(ends, succeeded, isEvicted), node: node()}, letGo},
		{"when it is to run once more, the status forgets the end first", snapshot{vm: vm(never, released, restarted, ended(v1alpha1.PhaseSucceeded)), node: node()}, nil},
		{"also by restartPolicy", snapshot{vm: vm(released, ended(v1alpha1.PhaseSucceeded)), node: node()}, nil},
		{"then it runs", snapshot{vm: vm(never, released, restarted), node: node()}, []action{createBerth{}}},
		{"a guest that gave another code than 0 fails under Never, and its pod is kept until the status tells", snapshot{vm: vm(never, released, idle), berth: pod(ends, failed, endedAs(v1alpha1.ReasonPoweredOff)), node: node()}, nil},
		{"under OnFailure it comes back when its pod is deleted", snapshot{vm: vm(onFailure, released, idle), berth: pod(ends, failed, endedAs(v1alpha1.ReasonPoweredOff)), node: node()}, letGo},
		{"a finished VirtualMachine is kept by default", snapshot{vm: vm(never, released, endedAt(now)), node: node(), now: now.Add(10000 * time.Hour)}, nil},
		{"one with a time to live is kept for it", snapshot{vm: vm(never, released, ttl(60), endedAt(now)), node: node(), now: now.Add(59 * time.Second)}, nil},
		{"and no longer", snapshot{vm: vm(never, released, ttl(60), endedAt(now)), node: node(), now: now.Add(time.Minute)}, []action{deleteFinished{}}},
		{"whatever is left of its pod", snapshot{vm: vm(never, idle, ttl(60), endedAt(now)), berth: pod(succeeded, endedAs(v1alpha1.ReasonPoweredOff)), node: node(), now: now.Add(time.Minute)}, []action{deleteFinished{}}},
		{"and of its node", snapshot{vm: vm(never, idle, ttl(60), endedAt(now)), now: now.Add(time.Minute)}, []action{deleteFinished{}}},
		{"under OnFailure, too", snapshot{vm: vm(onFailure, released, ttl(0), endedAt(now)), node: node(), now: now}, []action{deleteFinished{}}},
		{"not before the status tells of its end", snapshot{vm: vm(never, idle, ttl(0)), berth: pod(succeeded, endedAs(v1alpha1.ReasonPoweredOff)), node: node(), now: now.Add(time.Minute)}, nil},
		{"nor if that has no time yet, as it was written by an older operator", snapshot{vm: vm(never, released, ttl(0), ended(v1alpha1.PhaseSucceeded)), node: node(), now: now.Add(time.Minute)}, nil},
		{"a restart in between cancels it", snapshot{vm: vm(never, released, ttl(60), endedAt(now), restarted), node: node(), now: now.Add(time.Hour)}, nil},
		{"also in the berth that is there", snapshot{vm: vm(never, idle, ttl(60), endedAt(now), restarted), berth: pod(succeeded), node: node(), now: now.Add(time.Hour)}, end},
		{"so does a policy that wants it back", snapshot{vm: vm(released, ttl(60), endedAt(now)), node: node(), now: now.Add(time.Hour)}, nil},
		{"and one that was stopped is kept", snapshot{vm: vm(never, released, ttl(60), endedAt(now), stopped), node: node(), now: now.Add(time.Hour)}, nil},
		{"one that runs again is kept, whatever the status tells of the end before", snapshot{vm: vm(never, says(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted), ttl(0), endedAt(now)), berth: pod(), node: node(), now: now.Add(time.Hour)}, nil},
		{"one that is being deleted is not deleted again", snapshot{vm: vm(never, deleted, ttl(0), endedAt(now)), node: node(), now: now.Add(time.Hour)}, nil},
		{"its pod is kept until the status tells of it", snapshot{vm: vm(never, released, idle), berth: pod(ends, succeeded, endedAs(v1alpha1.ReasonPoweredOff)), node: node()}, nil},
		{"and goes then", snapshot{vm: vm(never, released, idle, ended(v1alpha1.PhaseSucceeded)), berth: pod(ends, succeeded, endedAs(v1alpha1.ReasonPoweredOff)), node: node()}, letGo},
		{"one that powers off because its pod is deleted comes back under OnFailure", snapshot{vm: vm(onFailure, released, idle), berth: pod(ends, succeeded, endedAs(v1alpha1.ReasonShutDown)), node: node()}, letGo},
		{"and so does one that was to start in it", snapshot{vm: vm(onFailure, released, idle), berth: pod(ends, succeeded, endedAs(v1alpha1.ReasonNotRunning)), node: node()}, letGo},
		{"a shim that somebody ended before it had a guest is replaced", snapshot{vm: vm(never, idle), berth: pod(succeeded, endedAs(v1alpha1.ReasonNotRunning)), node: node()}, end},
		{"one that powers off for a reason of the node's stays so", snapshot{vm: vm(onFailure, idle), berth: pod(succeeded, endedAs(v1alpha1.ReasonShutDown)), node: node()}, nil},
		{"so is that of a guest that ran", snapshot{vm: vm(never, released, idle), berth: pod(ends), node: node()}, nil},
		{"and of one whose node is gone", snapshot{vm: vm(never, says(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted)), berth: pod(ends)}, nil},
		{"that of one that never ran goes", snapshot{vm: vm(never, released, says(v1alpha1.ConditionRunning, false, v1alpha1.ReasonNotRunning)), berth: pod(ends), node: node()}, letGo},
		{"and of one that OnFailure brings back", snapshot{vm: vm(onFailure, released, idle), berth: pod(ends, succeeded), node: node()}, letGo},
		{"a deleted VirtualMachine waits for its disks", snapshot{vm: vm(deleted), node: node()}, nil},
		{"and goes with them", snapshot{vm: vm(deleted, says(v1alpha1.ConditionDisksReady, false, v1alpha1.ReasonDisksRemoved)), node: node()}, []action{removeFinalizer{}}},
		{"or with its node", snapshot{vm: vm(deleted)}, []action{removeFinalizer{}}},
		{"or at once if it never had one", snapshot{vm: vm(deleted, neverScheduled)}, []action{removeFinalizer{}}},
		{"a berth without its VirtualMachine is ended", snapshot{surplus: surplus(pod(), node(), nil)}, end},
		{"and released on the host's word", snapshot{surplus: surplus(pod(ends), node(), host)}, letGo},
		{"not without it", snapshot{surplus: surplus(pod(ends), node(), nil)}, nil},
		{"nor on another host's", snapshot{surplus: surplus(pod(ends), node(), nil), host: host}, nil},
		{"or when its node is out of service", snapshot{surplus: surplus(pod(ends), node(tainted), nil)}, letGo},
		{"not when another node is", snapshot{surplus: surplus(pod(ends), node(), nil), node: node(tainted)}, nil},
		{"a surplus berth is ended, and the berth left alone", snapshot{vm: vm(), berth: pod(), node: node(), surplus: surplus(other(), node(), nil)}, []action{deleteBerth{other(), 70}}},
		{"it is awaited", snapshot{vm: vm(), berth: pod(), node: node(), surplus: surplus(other(ends), node(), nil)}, nil},
		{"and released on its host's word", snapshot{vm: vm(), berth: pod(), node: node(), surplus: surplus(other(ends), node(), otherHost)}, []action{removeBerthFinalizer{other()}}},
		{"not on what is said of the berth", snapshot{vm: vm(released), berth: pod(), node: node(), host: host, surplus: surplus(other(ends), node(), nil)}, nil},
		{"not because the berth has no node", snapshot{vm: vm(neverScheduled), berth: pod(withoutNode), surplus: surplus(other(ends), node(), nil)}, nil},
		{"at once if it never had a node", snapshot{vm: vm(), berth: pod(), node: node(), surplus: surplus(other(ends, withoutNode), nil, nil)}, []action{removeBerthFinalizer{other()}}},
		{"both end with their VirtualMachine", snapshot{vm: vm(deleted), berth: pod(), node: node(), surplus: surplus(other(), node(), nil)}, []action{deleteBerth{pod(), 70}, deleteBerth{other(), 70}}},
		{"no berth is made while a guest may be in a surplus one", snapshot{vm: vm(released), node: node(), surplus: surplus(other(ends), node(), nil)}, nil},
		{"but a VirtualMachine that is deleted goes", snapshot{vm: vm(deleted, neverScheduled), surplus: surplus(other(ends), node(), nil)}, []action{removeFinalizer{}}},
		{"nobody and nothing", snapshot{}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.seen.berth != nil {
				tt.seen.berth.Annotations = map[string]string{berth.AnnotationRestartedAt: ""}
			}
			got := decide(tt.seen)
			same := cmp.Comparer(func(a, b *corev1.Pod) bool { return a.UID == b.UID })
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(createBerth{}, deleteBerth{}, removeBerthFinalizer{}), same); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestTimeToLive: when to look again, and from when the time counts.
func TestTimeToLive(t *testing.T) {
	later := now.Add(20*time.Second + time.Millisecond)
	unstamped := ended(v1alpha1.PhaseSucceeded)
	anotherRun := func(vm *v1alpha1.VirtualMachine) { vm.Status.Ended.RestartedAt = "before" }
	for _, tt := range []struct {
		name  string
		seen  snapshot
		wake  time.Duration
		since time.Time // status.ended.time, as it is to be written; zero: there is no end
	}{
		{"no time to live", snapshot{vm: vm(never, released, endedAt(now)), node: node(), now: later}, 0, now},
		{"what is left of it", snapshot{vm: vm(never, released, ttl(60), endedAt(now)), node: node(), now: later}, 40*time.Second - time.Millisecond, now},
		{"the longest", snapshot{vm: vm(never, released, ttl(31536000), endedAt(now)), node: node(), now: now}, 365 * 24 * time.Hour, now},
		{"nothing is left, and the deletion may have failed", snapshot{vm: vm(never, released, ttl(0), endedAt(now)), node: node(), now: later}, time.Second, now},
		{"the end is new", snapshot{vm: vm(never, ttl(60)), berth: pod(succeeded, endedAs(v1alpha1.ReasonPoweredOff)), node: node(), now: later}, 0, later.Truncate(time.Second)},
		{"the end was told by an older operator", snapshot{vm: vm(never, released, ttl(60), unstamped), node: node(), now: later}, 0, later.Truncate(time.Second)},
		{"it was told already, while the berth was there", snapshot{vm: vm(never, ttl(60), endedAt(now)), berth: pod(succeeded, endedAs(v1alpha1.ReasonPoweredOff)), node: node(), now: later}, 40*time.Second - time.Millisecond, now},
		{"what was told is of another run", snapshot{vm: vm(never, ttl(60), endedAt(now), anotherRun), berth: pod(succeeded, endedAs(v1alpha1.ReasonPoweredOff)), node: node(), now: later}, 0, later.Truncate(time.Second)},
		{"it runs", snapshot{vm: vm(never, ttl(60)), berth: pod(), node: node(), now: later}, 0, time.Time{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.seen.berth != nil {
				tt.seen.berth.Annotations = map[string]string{berth.AnnotationRestartedAt: ""}
			}
			if wake := tt.seen.wake(); wake != tt.wake {
				t.Errorf("it is looked at again after %s, want %s", wake, tt.wake)
			}
			var since time.Time
			if e := statusOf(tt.seen, nil).Ended; e != nil {
				since = e.Time.Time
			}
			if !since.Equal(tt.since) {
				t.Errorf("the end is of %s, want %s", since, tt.since)
			}
		})
	}
}

// TestAssign: which pod is the berth, of all that VirtualMachines of its name own.
func TestAssign(t *testing.T) {
	owned := func(name string, uid, owner types.UID) corev1.Pod {
		return *pod(func(p *corev1.Pod) {
			p.Name, p.UID = name, uid
			p.OwnerReferences = []metav1.OwnerReference{{
				APIVersion: v1alpha1.GroupVersion.String(), Kind: "VirtualMachine", Name: "web", UID: owner, Controller: new(true),
			}}
		})
	}
	web, target, orphan := owned("web", "pod-1", "vm-1"), owned("web-2", "pod-2", "vm-1"), owned("web", "pod-0", "vm-0")
	names := func(uid types.UID) func(*v1alpha1.VirtualMachine) {
		return func(vm *v1alpha1.VirtualMachine) { vm.Status.Berth.PodUID = uid }
	}
	for _, tt := range []struct {
		name string
		vm   *v1alpha1.VirtualMachine
		node *corev1.Node
		pods []corev1.Pod
		want string // the UID of the berth, and those that are surplus
	}{
		{"there is none", vm(), node(), nil, ""},
		{"the one that the status names", vm(), node(), []corev1.Pod{target, web}, "pod-1 pod-2"},
		{"whatever its name", vm(names("pod-2")), node(), []corev1.Pod{web, target}, "pod-2 pod-1"},
		{"before the status names one, that of its name", vm(neverScheduled), nil, []corev1.Pod{target, web}, "pod-1 pod-2"},
		{"none of another name", vm(neverScheduled), nil, []corev1.Pod{target}, " pod-2"},
		{"none while a guest may be left of one that the status names", vm(names("pod-3")), node(), []corev1.Pod{web}, " pod-1"},
		{"but after its agent has reported", vm(names("pod-3"), func(vm *v1alpha1.VirtualMachine) { vm.Status.ReleasedBerth = "pod-3" }), node(), []corev1.Pod{web}, "pod-1"},
		{"or when its node is out of service", vm(names("pod-3")), node(tainted), []corev1.Pod{web}, "pod-1"},
		{"or gone", vm(names("pod-3")), nil, []corev1.Pod{web}, "pod-1"},
		{"none of a VirtualMachine that had the name", vm(neverScheduled), nil, []corev1.Pod{orphan}, " pod-0"},
		{"even if the status names it", vm(names("pod-0")), node(), []corev1.Pod{orphan}, " pod-0"},
		{"none without a VirtualMachine", nil, nil, []corev1.Pod{web, target}, " pod-1 pod-2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := snapshot{vm: tt.vm, node: tt.node}
			seen.assign(tt.pods)
			got := ""
			if seen.berth != nil {
				got = string(seen.berth.UID)
			}
			for _, b := range seen.surplus {
				got += " " + string(b.pod.UID)
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}
