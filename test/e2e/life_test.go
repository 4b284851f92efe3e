package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// tiny is the fastest guest of the lab: a kernel and an initrd, no disk. A processor emulated on a busy machine may stall
// for longer than Linux lets it when it checks its timer.
const tiny = `
apiVersion: berth.dev/v1alpha1
kind: VirtualMachine
metadata: {name: tiny}
spec:
  terminationGracePeriodSeconds: 20
  memory: {size: 96Mi}
  kernel: {image: $KERNEL, initrdPath: /boot/initrd, commandLine: console=ttyS0 no_timer_check}
`

// disked boots from a kept disk.
const disked = `
apiVersion: berth.dev/v1alpha1
kind: VirtualMachine
metadata: {name: disked}
spec:
  terminationGracePeriodSeconds: 20
  memory: {size: 96Mi}
  disks: [{name: root, image: $TINY, size: 1Gi}]
`

func phase(want v1alpha1.Phase) func(*v1alpha1.VirtualMachine) bool {
	return func(vm *v1alpha1.VirtualMachine) bool { return vm != nil && vm.Status.Phase == want }
}

// TestNamespaceDeleted: a namespace takes its guests with it.
func TestNamespaceDeleted(t *testing.T) {
	l := start(t)
	l.apply(tiny)
	vm := l.vm("tiny", "to be Ready", isReady)
	l.kubectl("", "delete", "namespace", l.ns)
	l.vm("tiny", "to be gone", isGone)
	nothingLeft(l, string(vm.UID))
}

func TestLife(t *testing.T) {
	l := start(t)
	l.apply(disked)
	vm := l.vm("disked", "to be Ready", isReady)
	node, digest := vm.Status.NodeName, vm.Status.Disks[0].ImageDigest
	console := l.logs("disked")
	console.await("tiny: up")
	if first, _, _ := strings.Cut(console.String(), "tiny: up"); !strings.Contains(first, "SeaBIOS") || !strings.Contains(first, "Linux version") {
		t.Errorf("the console does not begin with the firmware's first words, and then the kernel's: %.200q", first)
	}

	t.Log("stop")
	l.patch("disked", `{"state":"Stopped"}`)
	vm = l.vm("disked", "to be Stopped", phase(v1alpha1.PhaseStopped))
	if vm.Status.LastExit == nil || vm.Status.LastExit.Reason != v1alpha1.ReasonShutDown || vm.Status.LastExit.ExitCode != 0 {
		t.Errorf("a graceful stop left %+v", vm.Status.LastExit)
	}
	l.pod("disked", "to be gone", isGone)

	t.Log("start again, where the disk is")
	l.patch("disked", `{"state":"Running"}`)
	vm = l.vm("disked", "to be Ready again", isReady)
	if vm.Status.NodeName != node || vm.Status.Disks[0].ImageDigest != digest {
		t.Errorf("it came back on %s with %s, was on %s with %s", vm.Status.NodeName, vm.Status.Disks[0].ImageDigest, node, digest)
	}
	l.logs("disked").await("tiny: up")

	t.Log("pause and resume")
	uid := l.pod("disked", "to be there", func(p *corev1.Pod) bool { return p != nil }).UID
	l.patch("disked", `{"state":"Paused"}`)
	vm = l.vm("disked", "to be Paused", phase(v1alpha1.PhasePaused))
	if isReady(vm) {
		t.Error("a paused guest is Ready")
	}
	l.patch("disked", `{"state":"Running"}`)
	l.vm("disked", "to run on", func(vm *v1alpha1.VirtualMachine) bool { return runs(vm) && vm.Status.Phase == v1alpha1.PhaseRunning })
	pod := l.pod("disked", "to be there", func(p *corev1.Pod) bool { return p != nil })
	if pod.UID != uid || pod.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Error("pausing made a new berth or restarted it")
	}

	t.Log("restart by restartedAt")
	l.patch("disked", `{"restartedAt":"now"}`)
	l.pod("disked", "to be another", func(p *corev1.Pod) bool { return p != nil && p.UID != uid })
	l.vm("disked", "to be Ready in the new berth", func(vm *v1alpha1.VirtualMachine) bool {
		return isReady(vm) && vm.Status.Berth.PodUID != uid
	})

	t.Log("a change waits for a restart, and goes away when reverted")
	l.patch("disked", `{"cpu":{"cores":2}}`)
	l.vm("disked", "to have a pending change", func(vm *v1alpha1.VirtualMachine) bool {
		return vm != nil && len(vm.Status.PendingChanges) == 1 &&
			vm.Status.PendingChanges[0] == v1alpha1.PendingChange{Path: "cpu.cores", From: "1", To: "2", Effect: v1alpha1.EffectNewBerth} &&
			has(vm, v1alpha1.ConditionUpToDate, metav1.ConditionFalse, v1alpha1.ReasonChangesPending)
	})
	l.patch("disked", `{"cpu":{"cores":1}}`)
	l.vm("disked", "to have none", func(vm *v1alpha1.VirtualMachine) bool {
		return vm != nil && len(vm.Status.PendingChanges) == 0 && has(vm, v1alpha1.ConditionUpToDate, metav1.ConditionTrue, "")
	})

	onlyUsersWroteSpec(l, "disked")
	uid = l.vm("disked", "to be there", runs).UID
	l.kubectl("", "delete", "vm", "disked", "--wait=false")
	l.vm("disked", "to be gone", isGone)
	l.pod("disked", "to be gone", isGone)
	nothingLeft(l, string(uid))
}

// onlyUsersWroteSpec: nobody but the user wrote the spec, labels or annotations; a finalizer is the operator's.
func onlyUsersWroteSpec(l *lab, name string) {
	l.Helper()
	vm := l.vm(name, "to be there", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil })
	for _, m := range vm.ManagedFields {
		if strings.HasPrefix(m.Manager, "kubectl") {
			continue
		}
		fields := string(m.FieldsV1.Raw)
		for _, field := range []string{`"f:spec"`, `"f:labels"`, `"f:annotations"`} {
			if strings.Contains(fields, field) {
				l.Errorf("%s wrote %s: %s", m.Manager, field, fields)
			}
		}
	}
}

func TestForcedStop(t *testing.T) {
	l := start(t)
	l.apply(strings.Replace(tiny, "Seconds: 20", "Seconds: 3", 1))
	uid := l.vm("tiny", "to be Ready", isReady).UID
	console := l.logs("tiny")
	console.await("tiny: up")
	l.say("tiny", "deaf")
	console.await("tiny: deaf")
	l.patch("tiny", `{"state":"Stopped"}`)
	vm := l.vm("tiny", "to be Stopped", phase(v1alpha1.PhaseStopped))
	if e := vm.Status.LastExit; e == nil || e.Reason != v1alpha1.ReasonForcedOff || e.ExitCode != 137 {
		t.Errorf("a forced stop left %+v", e)
	}
	l.kubectl("", "delete", "vm", "tiny")
	nothingLeft(l, string(uid))
}
