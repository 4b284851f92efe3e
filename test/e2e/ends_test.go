package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// end is a way in which a guest ends without being asked to.
type end struct {
	name   string // also what the tiny guest is told for it
	cause  func(*lab, *v1alpha1.VirtualMachine)
	reason v1alpha1.Reason
	code   int32
}

var (
	powersOff = end{"poweroff", says("poweroff"), v1alpha1.ReasonPoweredOff, 0}
	exits     = end{"exit 3", says("exit 3"), v1alpha1.ReasonPoweredOff, 3}
	panics    = end{"panic", says("panic"), v1alpha1.ReasonGuestPanicked, 134}
	isKilled  = end{"kill", killQEMU, v1alpha1.ReasonQEMUFailed, 1}
)

// ending is an end under a restart policy.
type ending struct {
	end
	policy v1alpha1.RestartPolicy
}

func endings() (all []ending) {
	for _, e := range []end{powersOff, exits, panics, isKilled} {
		for _, p := range []v1alpha1.RestartPolicy{v1alpha1.RestartAlways, v1alpha1.RestartOnFailure, v1alpha1.RestartNever} {
			all = append(all, ending{e, p})
		}
	}
	return all
}

// restarts tells whether the guest starts again.
func (e ending) restarts() bool {
	return e.policy == v1alpha1.RestartAlways || e.policy == v1alpha1.RestartOnFailure && e.code != 0
}

// after is what the guest comes to.
func (e ending) after(vm *v1alpha1.VirtualMachine) bool {
	switch {
	case e.restarts():
		return restartedAfter(e.reason, e.code)(vm)
	case e.code == 0:
		return phase(v1alpha1.PhaseSucceeded)(vm) && exited(vm, e.reason, e.code)
	default:
		return phase(v1alpha1.PhaseFailed)(vm) && exited(vm, e.reason, e.code)
	}
}

// TestEnds has the guest end in each way under each restart policy.
func TestEnds(t *testing.T) {
	t.Parallel()
	for _, e := range endings() {
		t.Run(fmt.Sprintf("%s under %s", e.name, e.policy), func(t *testing.T) {
			l := start(t)
			l.apply(tiny + "  restartPolicy: " + string(e.policy) + "\n")
			vm := l.vm("tiny", "to be Ready", isReady)
			before := l.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
			l.logs("tiny").await("tiny: up")
			e.cause(l, vm)

			after := l.pod("tiny", "to have ended", func(p *corev1.Pod) bool {
				return p != nil && len(p.Status.ContainerStatuses) > 0 && ended(p, e.restarts()) != nil
			})
			if state := ended(after, e.restarts()); state.ExitCode != e.code || !strings.HasPrefix(state.Message, string(e.reason)) {
				t.Errorf("the container ended with %d, %q; want %d, %s", state.ExitCode, state.Message, e.code, e.reason)
			}
			if after.UID != before.UID || after.Status.PodIP != before.Status.PodIP {
				t.Errorf("the berth or its address changed: %s %s, was %s %s", after.UID, after.Status.PodIP, before.UID, before.Status.PodIP)
			}
			l.event("tiny", e.reason)
			l.vm("tiny", "to come to its end", e.after)
			if e.restarts() {
				l.logs("tiny").await("tiny: up")
			}
		})
	}
}

// ended is how the guest's container ended: the former one if it was restarted.
func ended(p *corev1.Pod, restarted bool) *corev1.ContainerStateTerminated {
	c := p.Status.ContainerStatuses[0]
	if restarted {
		return c.LastTerminationState.Terminated
	}
	return c.State.Terminated
}

func TestReboot(t *testing.T) {
	l := start(t)
	l.apply(tiny)
	l.vm("tiny", "to be Ready", isReady)
	console := l.logs("tiny")
	console.await("tiny: up")
	l.say("tiny", "reboot")
	console.awaitTimes("tiny: up", 2)
	l.vm("tiny", "to have been reset", func(vm *v1alpha1.VirtualMachine) bool { // of one whose QEMU gets no CPU, QEMU tells twice
		return isReady(vm) && vm.Status.Resets > 0 && vm.Status.LastReset != nil
	})
	pod := l.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
	if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("a reboot inside the guest restarted the container %d times", n)
	}
}

func TestOutOfMemory(t *testing.T) {
	l := start(t)
	l.apply(strings.Replace(tiny, "96Mi", "256Mi", 1))
	vm := l.vm("tiny", "to be Ready", isReady)
	console := l.logs("tiny")
	console.await("tiny: up")
	// What QEMU needs beyond its guest is limited, as by an administrator who cut it too fine.
	squeeze(l, vm, 32)
	l.say("tiny", "eat 200")
	pod := l.pod("tiny", "to be OOM-killed", func(p *corev1.Pod) bool {
		return p != nil && len(p.Status.ContainerStatuses) > 0 && p.Status.ContainerStatuses[0].LastTerminationState.Terminated != nil
	})
	if state := pod.Status.ContainerStatuses[0].LastTerminationState.Terminated; state.ExitCode != 137 || state.Reason != "OOMKilled" {
		t.Errorf("the container ended with %d %s", state.ExitCode, state.Reason)
	}
	vm = l.vm("tiny", "to tell of it", func(vm *v1alpha1.VirtualMachine) bool { return vm != nil && vm.Status.LastExit != nil })
	if vm.Status.LastExit.Reason != v1alpha1.ReasonOOMKilled {
		t.Errorf("last exit is %+v", vm.Status.LastExit)
	}
}

// onNode runs a command on the machine of a node.
func (l *lab) onNode(node string, command ...string) string {
	l.Helper()
	out, err := exec.CommandContext(l.Context(), "lab", append([]string{"exec", node, "--"}, command...)...).CombinedOutput()
	if err != nil {
		l.Fatalf("%s on %s: %v: %s", strings.Join(command, " "), node, err, out)
	}
	return string(out)
}

func killQEMU(l *lab, vm *v1alpha1.VirtualMachine) {
	l.Helper()
	l.onNode(vm.Status.NodeName, "pkill", "-KILL", "-f", "^/usr/bin/qemu-system.*-uuid "+string(vm.UID))
}

// squeeze sets the memory limit of the guest's container to so many MiB more than it uses.
func squeeze(l *lab, vm *v1alpha1.VirtualMachine, spare int) {
	l.Helper()
	l.onNode(vm.Status.NodeName, "sh", "-c", fmt.Sprintf(`
		for d in /sys/fs/cgroup/memory/kubepods/*/pod%s/*/; do
			used=$(cat $d/memory.usage_in_bytes)
			echo $((used + (%d << 20))) > $d/memory.limit_in_bytes
		done`, vm.Status.Berth.PodUID, spare))
}

// nothingLeft: no node has anything of a guest that is gone.
func nothingLeft(l *lab, uid string) {
	l.Helper()
	for _, node := range nodes(l) {
		nothingLeftOn(l, node, uid)
	}
}

func nothingLeftOn(l *lab, node, uid string) {
	l.Helper()
	found := l.onNode(node, "sh", "-c", fmt.Sprintf(`
		virsh list --all --uuid | grep %[1]s
		pgrep -f "^/usr/bin/qemu-system.*-uuid %[1]s"
		ls -d /var/lib/berth/vms/%[1]s /run/berth/seeds/%[1]s* /run/berth/consoles/%[1]s* /run/berth/ports/%[1]s* /run/berth/displays/%[1]s 2>/dev/null
		ip -o link show %[2]s 2>/dev/null
		grep %[1]s /proc/mounts
		find /sys/fs/cgroup -name "*%[1]s*" 2>/dev/null
		true`, uid, berth.TapName(types.UID(uid), "default")))
	for line := range strings.SplitSeq(strings.TrimSpace(found), "\n") {
		if line != "" {
			l.Errorf("left on %s: %s", node, line)
		}
	}
}
