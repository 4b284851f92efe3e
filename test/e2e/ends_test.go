package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// ends are the ways in which a guest ends without being asked to.
var ends = []struct {
	name   string
	cause  func(*lab, *v1alpha1.VirtualMachine)
	reason v1alpha1.Reason
	code   int32
}{
	{"poweroff", says("poweroff"), v1alpha1.ReasonPoweredOff, 0},
	{"panic", says("panic"), v1alpha1.ReasonGuestPanicked, 134},
	{"kill", killQEMU, v1alpha1.ReasonQEMUFailed, 1},
}

var policies = []v1alpha1.RestartPolicy{v1alpha1.RestartAlways, v1alpha1.RestartOnFailure, v1alpha1.RestartNever}

// restarts tells whether a policy has a guest that ended with that exit code start again.
func restarts(policy v1alpha1.RestartPolicy, code int32) bool {
	return policy == v1alpha1.RestartAlways || policy == v1alpha1.RestartOnFailure && code != 0
}

// endedFor is the phase of a guest that ended with that exit code and is not started again.
func endedFor(code int32) v1alpha1.Phase {
	if code == 0 {
		return v1alpha1.PhaseSucceeded
	}
	return v1alpha1.PhaseFailed
}

// TestEnds has the guest end in each way under each restart policy.
func TestEnds(t *testing.T) {
	for _, end := range ends {
		for _, policy := range policies {
			t.Run(fmt.Sprintf("%s under %s", end.name, policy), func(t *testing.T) {
				l := start(t)
				l.apply(tiny + "  restartPolicy: " + string(policy) + "\n")
				vm := l.vm("tiny", "to be Ready", isReady)
				before := l.pod("tiny", "to be there", func(p *corev1.Pod) bool { return p != nil })
				l.logs("tiny").await("tiny: up")
				end.cause(l, vm)

				restarted := restarts(policy, end.code)
				after := l.pod("tiny", "to have ended", func(p *corev1.Pod) bool {
					return p != nil && len(p.Status.ContainerStatuses) > 0 && ended(p, restarted) != nil
				})
				if state := ended(after, restarted); state.ExitCode != end.code || !strings.HasPrefix(state.Message, string(end.reason)) {
					t.Errorf("the container ended with %d, %q; want %d, %s", state.ExitCode, state.Message, end.code, end.reason)
				}
				if after.UID != before.UID || after.Status.PodIP != before.Status.PodIP {
					t.Errorf("the berth or its address changed: %s %s, was %s %s", after.UID, after.Status.PodIP, before.UID, before.Status.PodIP)
				}
				vm = l.vm("tiny", "to tell of it", func(vm *v1alpha1.VirtualMachine) bool {
					return vm != nil && vm.Status.LastExit != nil
				})
				if e := vm.Status.LastExit; e.Reason != end.reason || e.ExitCode != end.code {
					t.Errorf("last exit is %+v, want %s and %d", e, end.reason, end.code)
				}
				l.event("tiny", end.reason)
				if !restarted {
					l.vm("tiny", "to stay ended", phase(endedFor(end.code)))
					return
				}
				l.vm("tiny", "to be Ready again", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.Restarts == 1 })
				l.logs("tiny").await("tiny: up")
			})
		}
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
	for node := range strings.FieldsSeq(os.Getenv("LAB_NODES")) {
		nothingLeftOn(l, node, uid)
	}
}

func nothingLeftOn(l *lab, node, uid string) {
	l.Helper()
	found := l.onNode(node, "sh", "-c", fmt.Sprintf(`
		virsh list --all --uuid | grep %[1]s
		pgrep -f "^/usr/bin/qemu-system.*-uuid %[1]s"
		ls -d /var/lib/berth/vms/%[1]s /run/berth/seeds/%[1]s* /run/berth/consoles/%[1]s* 2>/dev/null
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
