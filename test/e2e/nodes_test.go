package e2e

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// TestNodeLost cuts a node's power: its guests are unknown, and nobody starts them elsewhere, until the node is back or
// an administrator confirms that it is off. Then a guest without kept disks goes to another node, one with a claim takes that along, and one with kept disks waits.
func TestNodeLost(t *testing.T) {
	other, home := nodes(t)[0], nodes(t)[1]
	l := startOn(t, home)
	const outOfService = corev1.TaintNodeOutOfService + "=off:NoExecute"
	t.Cleanup(func() {
		l.undo("lab", "on", home)
		l.undo("kubectl", "uncordon", other)
		for _, state := range []string{"create", "condition=Ready"} {
			l.undo("kubectl", "wait", "node", home, "--for="+state, "--timeout=2m")
		}
		l.undo("sh", "-c", "kubectl taint node "+home+" "+outOfService+"- || true")
		l.system("rollout", "status", "daemonset/berth-agent", "--timeout=2m")
		l.undo("kubectl", "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=2m")
	})
	l.kubectl("", "cordon", other)
	l.apply(strings.Replace(tiny, "name: tiny", "name: moves", 1))
	l.apply(strings.Replace(disked, "name: disked", "name: stays", 1))
	l.apply(claimOf("files", "Filesystem", "ReadWriteOnce", "300Mi") + guestWith("takes", claimed("files", "")))
	names := []string{"moves", "stays", "takes"}
	before := map[string]*v1alpha1.VirtualMachine{}
	for _, name := range names {
		before[name] = l.vm(name, "to be Ready", isReady)
	}
	l.kubectl("", "uncordon", other)
	l.kept("takes", "", "files")
	l.keep("takes", "kept", "files")
	one := watchOne(string(before["moves"].UID), string(before["takes"].UID))
	lost := func(vm *v1alpha1.VirtualMachine) bool {
		return phase(v1alpha1.PhaseUnknown)(vm) && has(vm, v1alpha1.ConditionScheduled, metav1.ConditionUnknown, v1alpha1.ReasonNodeLost)
	}

	for reboot := range deep[int32](1, 20, 100) {
		t.Log("off, and on again")
		l.undo("lab", "off", home)
		for _, name := range names {
			l.vm(name, "to be lost", lost)
		}
		l.undo("lab", "on", home)
		on := time.Now()
		for _, name := range names {
			vm := l.vm(name, "to be Ready in the same berth", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Restarts > reboot })
			if vm.Status.Berth.PodUID != before[name].Status.Berth.PodUID {
				t.Errorf("%s has another berth", name)
			}
		}
		t.Logf("all guests were back %v after the power", time.Since(on))
		for _, name := range names {
			l.logs(name).await("tiny: up")
		}
	}

	t.Log("off, and out of service")
	l.undo("lab", "off", home)
	for _, name := range names {
		l.vm(name, "to be lost", lost)
	}
	l.kubectl("", "taint", "node", home, outOfService)
	for _, name := range []string{"moves", "takes"} {
		l.vm(name, "to be Ready elsewhere", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.NodeName == other })
	}
	l.kept("takes", "kept", "files")
	l.vm("stays", "to wait for its disks", func(vm *v1alpha1.VirtualMachine) bool {
		c := meta.FindStatusCondition(vm.Status.Conditions, v1alpha1.ConditionScheduled)
		return c != nil && c.Reason == string(v1alpha1.ReasonUnschedulable) && strings.Contains(c.Message, "disks are on node "+home)
	})

	t.Log("removed from the cluster, and back")
	l.kubectl("", "delete", "node", home)
	l.undo("lab", "on", home)
	l.vm("stays", "to be Ready where its disks are", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.NodeName == home })
	l.logs("stays").await("tiny: up")
	if several := one(); several != "" {
		t.Errorf("there were several QEMUs at once: %s", several)
	}
	env.Eventually(t, "nothing of the guest that moved to be left behind", func() bool {
		return l.onNode(home, "sh", "-c", "ls /var/lib/berth/vms | grep "+string(before["moves"].UID)+" || true") == ""
	})
}
