package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// once is the tiny guest that ends with an exit code as soon as it is up, and is not run again.
func once(code string) string {
	return strings.Replace(tiny, "no_timer_check}", "no_timer_check exit="+code+"}", 1) + "  restartPolicy: Never\n"
}

// TestTimeToLive: a finished guest goes with all that it had when its time is over, but not if it was run once more.
func TestTimeToLive(t *testing.T) {
	t.Parallel()
	t.Run("over", func(t *testing.T) {
		l := start(t)
		l.apply(once("3") + "  ttlSecondsAfterFinished: 15\n  disks: [{name: data, image: $TINY}]\n")
		vm := l.vm("tiny", "to have ended with 3", func(vm *v1alpha1.VirtualMachine) bool {
			return phase(v1alpha1.PhaseFailed)(vm) && exited(vm, v1alpha1.ReasonPoweredOff, 3) && vm.Status.Ended != nil && vm.Status.Ended.Time != nil
		})
		gone := l.vm("tiny", "to be deleted", func(vm *v1alpha1.VirtualMachine) bool { return vm == nil || vm.DeletionTimestamp != nil })
		if gone != nil && gone.DeletionTimestamp.Sub(vm.Status.Ended.Time.Time).Seconds() < 15 {
			t.Errorf("it ended at %s and was deleted at %s, before its time", vm.Status.Ended.Time, gone.DeletionTimestamp)
		}
		l.event("tiny", v1alpha1.ReasonTTLExpired)
		l.vm("tiny", "to be gone", isGone)
		l.pod("tiny", "to be gone", isGone)
		nothingLeft(l, string(vm.UID))
	})
	t.Run("cancelled by a restart", func(t *testing.T) {
		l := start(t)
		l.apply(tiny + "  restartPolicy: Never\n  ttlSecondsAfterFinished: 3600\n")
		first := l.vm("tiny", "to be Ready", isReady)
		l.logs("tiny").await("tiny: up")
		l.say("tiny", "poweroff")
		l.vm("tiny", "to have succeeded", phase(v1alpha1.PhaseSucceeded))
		l.patch("tiny", `{"restartedAt":"again"}`)
		l.vm("tiny", "to be Ready in another berth", func(vm *v1alpha1.VirtualMachine) bool {
			return isReady(vm) && vm.Status.Berth.PodUID != first.Status.Berth.PodUID && vm.Status.Ended == nil
		})
		l.patch("tiny", `{"ttlSecondsAfterFinished":0}`) // the former end is longer ago than that
		l.vm("tiny", "to run on", func(vm *v1alpha1.VirtualMachine) bool {
			return isReady(vm) && vm.DeletionTimestamp == nil && vm.Status.ObservedGeneration == vm.Generation
		})
		l.logs("tiny").await("tiny: up")
		l.say("tiny", "poweroff")
		l.vm("tiny", "to be gone", isGone)
		nothingLeft(l, string(first.UID))
	})
}

// TestFinishedStaysFinished takes the pods of finished guests away, in each way in which pods go, and starts operator and
// agents anew: nothing runs a second time, and what the status says of the end stays.
func TestFinishedStaysFinished(t *testing.T) {
	l := startAlone(t)
	guests := map[string]struct {
		manifest string
		ended    func(*v1alpha1.VirtualMachine) bool
		taken    func(pod *corev1.Pod)
	}{
		"deleted": {once("0"), succeeded, func(pod *corev1.Pod) { l.kubectl("", "delete", "pod", pod.Name, "--wait=false") }},
		"failed":  {once("3"), failedWith(3), func(pod *corev1.Pod) { l.kubectl("", "delete", "pod", pod.Name, "--wait=false") }},
		"drained": {once("0"), succeeded, func(pod *corev1.Pod) {
			defer l.undo("kubectl", "uncordon", pod.Spec.NodeName)
			l.kubectl("", "drain", pod.Spec.NodeName, "--pod-selector="+berth.LabelVM+"="+pod.Name, "--ignore-daemonsets", "--timeout=1m")
		}},
		"evicted": {once("0"), succeeded, func(pod *corev1.Pod) { // as an autoscaler does
			eviction := fmt.Sprintf(`{"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": %q, "namespace": %q}}`, pod.Name, pod.Namespace)
			l.kubectl(eviction, "create", "--raw", "/api/v1/namespaces/"+pod.Namespace+"/pods/"+pod.Name+"/eviction", "-f", "-")
		}},
		"collected": {strings.Replace(once("0"), "Never", "OnFailure", 1), succeeded, func(pod *corev1.Pod) { // as kube-controller-manager does
			if err := l.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
				t.Error(err)
			}
		}},
		"said-what-is-no-code": {once("999"), succeeded, func(pod *corev1.Pod) { l.kubectl("", "delete", "pod", pod.Name, "--force", "--wait=false") }},
		"kept":                 {once("0"), succeeded, nil},
	}
	for name, g := range guests {
		l.apply(strings.Replace(g.manifest, "name: tiny", "name: "+name, 1))
	}
	ended := map[string]*v1alpha1.VirtualMachine{}
	for name, g := range guests {
		ended[name] = l.vm(name, "to have ended", g.ended)
		pod := l.pod(name, "to be there", func(p *corev1.Pod) bool { return p != nil })
		if g.taken != nil {
			g.taken(pod)
			l.pod(name, "to be gone", isGone)
		}
	}
	for _, part := range []string{"deployment/berth-operator", "daemonset/berth-agent"} {
		l.system("rollout", "restart", part)
		l.system("rollout", "status", part, "--timeout=2m")
	}
	for name, g := range guests {
		l.patch(name, `{"terminationGracePeriodSeconds":21}`) // so it is looked at once more
		vm := l.vm(name, "to be looked at", func(vm *v1alpha1.VirtualMachine) bool { return vm.Status.ObservedGeneration == vm.Generation })
		if !g.ended(vm) || !vm.Status.LastExit.Time.Equal(&ended[name].Status.LastExit.Time) || !vm.Status.Ended.Time.Equal(ended[name].Status.Ended.Time) {
			t.Errorf("%s is %+v, was %+v", name, vm.Status, ended[name].Status)
		}
		if pod := l.pod(name, "to be looked at", func(*corev1.Pod) bool { return true }); (pod != nil) != (g.taken == nil) {
			t.Errorf("the pod of %s is there: %t", name, pod != nil)
		}
	}
	started := l.kubectl("", "get", "events", "--field-selector", "involvedObject.kind=VirtualMachine,reason="+string(v1alpha1.ReasonStarted), "-o", "name")
	if n := len(strings.Fields(started)); n != len(guests) {
		t.Errorf("there were %d starts of %d guests", n, len(guests))
	}
}

func succeeded(vm *v1alpha1.VirtualMachine) bool {
	return phase(v1alpha1.PhaseSucceeded)(vm) && exited(vm, v1alpha1.ReasonPoweredOff, 0) && vm.Status.Ended != nil
}

func failedWith(code int32) func(*v1alpha1.VirtualMachine) bool {
	return func(vm *v1alpha1.VirtualMachine) bool {
		return phase(v1alpha1.PhaseFailed)(vm) && exited(vm, v1alpha1.ReasonPoweredOff, code) && vm.Status.Ended != nil
	}
}
