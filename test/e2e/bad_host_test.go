package e2e

import (
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestHostWithoutLibvirtd takes libvirtd away from a node that has a guest, and asks for one more.
func TestHostWithoutLibvirtd(t *testing.T) {
	node := nodes(t)[1]
	l := startOn(t, node)
	here := "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n"
	old := strings.Replace(tiny, "name: tiny", "name: old", 1) + here
	l.apply(old)
	l.vm("old", "to be Ready", isReady)
	console := l.logs("old")
	console.await("tiny: up")

	service := func(verb string) { l.undo("lab", "service", verb, node, "libvirtd") }
	service("stop")
	t.Cleanup(func() { service("start") })
	l.host(node, "to miss libvirtd", func(h *v1alpha1.VirtualMachineHost) bool {
		c := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionHostReady)
		return c != nil && c.Status == metav1.ConditionFalse && c.Reason == string(v1alpha1.ReasonLibvirtUnreachable) &&
			strings.Contains(c.Message, "start it") && len(h.Status.Problems) > 0 && h.Status.Problems[0].Blocking
	})
	l.vm("old", "to be unknown", func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionRunning, metav1.ConditionUnknown, v1alpha1.ReasonLibvirtUnreachable)
	})
	l.recovers(bad{
		manifest:  tiny + here,
		condition: v1alpha1.ConditionRunning, reason: v1alpha1.ReasonLibvirtUnreachable, says: "start it",
		repair: func(*lab) { service("start") },
	})
	l.host(node, "to be ready", func(h *v1alpha1.VirtualMachineHost) bool {
		return meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionHostReady)
	})
	l.vm("old", "to be Ready still", isReady)
	pod := l.pod("old", "to be there", func(p *corev1.Pod) bool { return p != nil })
	if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 || strings.Count(console.String(), "tiny: up") != 1 {
		t.Errorf("the guest that ran was harmed: %d restarts", n)
	}
}

// TestHostWithoutKVM takes /dev/kvm away from a node whose agent is to use it.
func TestHostWithoutKVM(t *testing.T) {
	l := startAlone(t)
	node := nodes(t)[0]
	accelerate := func(how string) {
		l.system("patch", "daemonset/berth-agent", "--type=json", "-p",
			`[{"op":"replace","path":"/spec/template/spec/containers/0/args/0","value":"-acceleration=`+how+`"}]`)
		l.system("rollout", "status", "daemonset/berth-agent", "--timeout=2m")
	}
	move := func(from, to string) {
		l.undo("lab", "exec", node, "--", "sh", "-c", "test ! -e "+from+" || mv "+from+" "+to)
	}
	repair := func() {
		move("/dev/kvm.away", "/dev/kvm")
		if os.Getenv("LAB_KVM") != "true" {
			accelerate("Emulation")
		}
	}
	t.Cleanup(repair)
	move("/dev/kvm", "/dev/kvm.away")
	accelerate("KVM")
	l.host(node, "to miss /dev/kvm", func(h *v1alpha1.VirtualMachineHost) bool {
		c := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionHostReady)
		return c != nil && c.Status == metav1.ConditionFalse && c.Reason == string(v1alpha1.ReasonKVMUnavailable)
	})
	offersKVM := func(node string) bool { // also where /dev/kvm opens, and no guest runs by it
		told := l.onNode(node, "sh", "-c", "virsh domcapabilities --virttype kvm 2>&1 || true")
		return strings.Contains(told, "<domain>kvm</domain>")
	}
	reason := v1alpha1.ReasonNoHost // as soon as the other nodes' agents have said so, too
	if slices.ContainsFunc(nodes(t)[1:], offersKVM) {
		reason = v1alpha1.ReasonUnschedulable
	}
	l.recovers(bad{
		manifest:  tiny + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n",
		condition: v1alpha1.ConditionScheduled, reason: reason, says: node + ": KVM cannot be used",
		repair: func(*lab) { repair() },
	})
}

// TestTaintedNode has no node that a guest tolerates, until it tolerates one.
func TestTaintedNode(t *testing.T) {
	node := nodes(t)[0]
	l := startOn(t, node)
	t.Cleanup(func() { l.undo("kubectl", "taint", "node", node, "e2e:NoSchedule-") })
	l.kubectl("", "taint", "node", node, "e2e:NoSchedule")
	l.recovers(bad{
		manifest:  tiny + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n",
		condition: v1alpha1.ConditionScheduled, reason: v1alpha1.ReasonUnschedulable, says: "untolerated taint",
		repair: patched(`{"tolerations":[{"key":"e2e","operator":"Exists"}]}`),
	})
}

// host waits until a node's VirtualMachineHost is as the test wants it.
func (l *lab) host(node, what string, is func(*v1alpha1.VirtualMachineHost) bool) {
	l.Helper()
	await(l.Context(), l, &v1alpha1.VirtualMachineHostList{}, "", node, "VirtualMachineHost "+node+" "+what,
		func(h *v1alpha1.VirtualMachineHost) bool { return h != nil && is(h) })
}
