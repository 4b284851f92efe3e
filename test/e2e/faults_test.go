package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
	"github.com/berth-dev/berth/test/proxy"
)

// TestHostFaults has what the guests of a node live on fail, while one of them counts. It must not notice, unless there
// is no other way; then it is restarted, and never are there two of it.
func TestHostFaults(t *testing.T) {
	node := nodes(t)[0]
	l := startOn(t, node)
	l.apply(tiny + "  nodeSelector: {kubernetes.io/hostname: " + node + "}\n")
	vm := l.vm("tiny", "to be Ready", isReady)
	uid := string(vm.UID)
	l.logs("tiny").await("tiny: up")
	l.say("tiny", "count")
	console, lost := "", 0 // all that it has shown, and how many lines of its count it has not
	one, qemu := watchOne(uid), fmt.Sprint(qemus(uid))

	unknown := func(vm *v1alpha1.VirtualMachine) bool {
		return has(vm, v1alpha1.ConditionRunning, metav1.ConditionUnknown, v1alpha1.ReasonLibvirtUnreachable)
	}
	var libvirt *saboteur
	sh := func(script string) { l.Helper(); l.onNode(node, "sh", "-ec", script) }
	for _, fault := range []struct {
		name string
		does func()
	}{
		{"libvirtd is killed", func() {
			sh("pkill -KILL -x libvirtd; until virsh version >/dev/null 2>&1; do sleep 0.1; done")
		}},
		{"libvirtd hangs", func() {
			sh("pkill -STOP -x libvirtd")
			l.vm("tiny", "to be unknown", unknown)
			if *depth > 0 {
				env.Steadily(t, "the guest's QEMU", time.Minute, func() bool { return fmt.Sprint(qemus(uid)) == qemu })
			}
			sh("pkill -CONT -x libvirtd")
		}},
		{"virtlogd is killed", func() { sh("pkill -KILL -x virtlogd") }},
		{"containerd restarts", func() { l.undo("lab", "service", "restart", node, "containerd") }},
		{"containerd is killed", func() { sh("pkill -KILL -x containerd") }},
		{"kubelet restarts", func() { l.undo("lab", "service", "restart", node, "kubelet") }},
		{"libvirt answers late", func() { libvirt = l.spoilLibvirt(node); libvirt.spoil(proxy.Late, 50) }},
		{"libvirt's answers are cut off", func() { libvirt.spoil(proxy.Cut, 50) }},
		{"libvirt's answers are wrong", func() { libvirt.spoil(proxy.Wrong, 100) }},
		{"libvirt's answers are lost", func() {
			libvirt.spoil(proxy.Lost, 1)
			l.vm("tiny", "to be unknown", unknown)
		}},
		{"libvirt answers again", func() { libvirt.end(); libvirt = nil }},
	} {
		t.Log(fault.name)
		counts := strings.Count(console, "count ")
		fault.does()
		if libvirt != nil { // between faults all is well
			libvirt.spoil(proxy.Pass, 1)
		}
		l.vm("tiny", "to be Ready", isReady)
		env.Eventually(t, "the guest to count on", func() bool { // who follows logs is cut off with kubelet and runtime
			var err error
			console, err = l.tryKubectl("", "logs", "tiny")
			return err == nil && strings.Count(console, "count ") >= counts+20
		})
		if strings.HasPrefix(fault.name, "containerd") { // it may take what it has read of a line with it, of any pod's
			lost++
		}
		if lacks := uncounted(l, console); len(lacks) > lost {
			t.Fatalf("the guest did not count %v", lacks)
		}
		l.host(node, "to be ready", hostReady)
		if now := fmt.Sprint(qemus(uid)); now != qemu {
			t.Fatalf("QEMU was %s and is %s", qemu, now)
		}
	}
	pod := l.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
	if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 || pod.UID != vm.Status.Berth.PodUID {
		t.Errorf("the guest was restarted: %d times, in berth %s", n, pod.UID)
	}

	t.Log("libvirtd forgets the guest")
	l.undo("lab", "service", "stop", node, "libvirtd")
	sh("rm -rf /run/libvirt/qemu")
	l.undo("lab", "service", "start", node, "libvirtd")
	l.vm("tiny", "to be Ready again, once", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Restarts == 1 })

	t.Log("its shim's sandbox is killed")
	sh(fmt.Sprintf(`for p in $(pgrep -f ^/pause); do if grep -q %s /proc/$p/cgroup; then kill -KILL $p; fi; done`, pod.UID))
	l.vm("tiny", "to be Ready in a new sandbox", func(vm *v1alpha1.VirtualMachine) bool {
		return isReady(vm) && len(vm.Status.Addresses) > 0 && vm.Status.Restarts == 2
	})

	t.Log("its berth is deleted by force")
	l.kubectl("", "delete", "pod", "tiny", "--force", "--grace-period=0")
	l.vm("tiny", "to be Ready in a new berth", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Berth.PodUID != pod.UID })

	t.Log("its berth is deleted by force, and its finalizer by hand")
	pod = l.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
	l.kubectl("", "patch", "pod", "tiny", "--type=merge", "-p", `{"metadata":{"finalizers":null}}`)
	l.kubectl("", "delete", "pod", "tiny", "--force", "--grace-period=0")
	l.vm("tiny", "to be Ready in a new berth", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Berth.PodUID != pod.UID })
	if several := one(); several != "" {
		t.Errorf("there were several QEMUs at once: %s", several)
	}
}

func hostReady(h *v1alpha1.VirtualMachineHost) bool {
	for _, c := range h.Status.Conditions {
		if c.Type == v1alpha1.ConditionHostReady {
			return c.Status == metav1.ConditionTrue
		}
	}
	return false
}
