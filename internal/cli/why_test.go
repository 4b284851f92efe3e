package cli

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

func vmWith(conditions ...metav1.Condition) *v1alpha1.VirtualMachine {
	vm := &v1alpha1.VirtualMachine{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", Generation: 1}}
	vm.Spec.State, vm.Spec.RestartPolicy = v1alpha1.StateRunning, v1alpha1.RestartAlways
	vm.Status.ObservedGeneration, vm.Status.Conditions = 1, conditions
	return vm
}

func is(kind string, status metav1.ConditionStatus, reason v1alpha1.Reason, message string) metav1.Condition {
	return metav1.Condition{Type: kind, Status: status, Reason: string(reason), Message: message, ObservedGeneration: 1, LastTransitionTime: metav1.NewTime(time.Now())}
}

func explain(f whyFacts) string {
	var out bytes.Buffer
	f.write(&out)
	return out.String()
}

// every reason that the API has.
var reasonsOfConditions = []v1alpha1.Reason{
	v1alpha1.ReasonUnschedulable, v1alpha1.ReasonNoHost, v1alpha1.ReasonBerthRefused, v1alpha1.ReasonPodNameTaken, v1alpha1.ReasonNodeLost,
	v1alpha1.ReasonPullingImage, v1alpha1.ReasonImageInvalid, v1alpha1.ReasonImageNotFound, v1alpha1.ReasonImageUnauthorized, v1alpha1.ReasonRegistryUnreachable,
	v1alpha1.ReasonImageNotDisk, v1alpha1.ReasonImageUnsafe, v1alpha1.ReasonImageTooLarge, v1alpha1.ReasonDiskTooSmall, v1alpha1.ReasonDiskMissing,
	v1alpha1.ReasonStoreFull, v1alpha1.ReasonSecretMissing, v1alpha1.ReasonGuestPanicked, v1alpha1.ReasonOOMKilled, v1alpha1.ReasonQEMUFailed,
	v1alpha1.ReasonDiskIOError, v1alpha1.ReasonLibvirtUnreachable, v1alpha1.ReasonLibvirtRefused, v1alpha1.ReasonKVMUnavailable, v1alpha1.ReasonBerthNotStarted,
	v1alpha1.ReasonProbesFailing, v1alpha1.ReasonChangesPending, v1alpha1.ReasonShimOutdated,
}

func TestEachReasonNamesItsCauseAndTheNextStep(t *testing.T) {
	for _, reason := range reasonsOfConditions {
		t.Run(string(reason), func(t *testing.T) {
			in := reason.ToldIn()
			said := explain(whyFacts{vm: vmWith(is(in, metav1.ConditionFalse, reason, "said by the one who knows"), is(v1alpha1.ConditionReady, metav1.ConditionFalse, reason, "the same"))})
			next := reason.Next()
			if next == "" {
				next = "wait"
			}
			for _, want := range []string{in + " is False: " + string(reason), "said by the one who knows", "cause: " + reason.When(), "next: " + next} {
				if !strings.Contains(said, want) {
					t.Errorf("it does not say %q:\n%s", want, said)
				}
			}
			if strings.Count(said, string(reason)+", for") != 1 {
				t.Errorf("Ready repeats what is said already:\n%s", said)
			}
		})
	}
}

func TestWhyGoesDownToTheHost(t *testing.T) {
	vm := vmWith(is(v1alpha1.ConditionRunning, metav1.ConditionUnknown, v1alpha1.ReasonLibvirtUnreachable, ""))
	vm.Status.Phase = v1alpha1.PhaseUnknown
	vm.Status.LastExit = &v1alpha1.LastExit{Reason: v1alpha1.ReasonGuestPanicked, ExitCode: 134, Message: "Kernel panic \x1b[31m"}
	vm.Status.PendingChanges = []v1alpha1.PendingChange{{Path: "cpu.cores", From: "1", To: "2", Effect: v1alpha1.EffectNewBerth}}
	host := &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
	host.Status.Conditions = []metav1.Condition{is(v1alpha1.ConditionHostReady, metav1.ConditionFalse, v1alpha1.ReasonLibvirtUnreachable, "no socket")}
	for i := range 5 {
		host.Status.Problems = append(host.Status.Problems, v1alpha1.HostProblem{Name: fmt.Sprint("Small", i), Message: "could be better"})
	}
	host.Status.Problems = append(host.Status.Problems, v1alpha1.HostProblem{Name: "LibvirtDown", Blocking: true, Message: strings.Repeat("long ", 1000)})
	events := []corev1.Event{
		{Type: corev1.EventTypeWarning, Reason: "BackOff", Message: "pulling", InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "web"}},
		{Type: corev1.EventTypeNormal, Reason: "Scheduled", InvolvedObject: corev1.ObjectReference{Kind: "Pod", Name: "web"}},
	}
	var console []string
	for i := range 20 {
		console = append(console, fmt.Sprintf("line %d\x1b[0m\r", i))
	}
	said := explain(whyFacts{vm, host, events, console})
	for _, want := range []string{
		"virtualmachine.berth.dev/web in default: Unknown", "Running is Unknown: LibvirtUnreachable", "next: Look at libvirtd",
		"last exit: GuestPanicked, code 134", "Kernel panic ?[31m", "pending: cpu.cores: 1 → 2: kubectl vm restart web",
		"pod web: BackOff: pulling", "host n1 is not Ready: LibvirtUnreachable", "host n1: LibvirtDown: long",
		"host n1: 3 problems more", "console:\n  line 15?[0m",
	} {
		if !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
	if strings.ContainsAny(said, "\x1b\r") || strings.Contains(said, "line 14") || strings.Contains(said, "Scheduled") {
		t.Errorf("it says too much:\n%q", said)
	}
	if lines := strings.Split(said, "\n"); len(lines) > 40 || slices.ContainsFunc(lines, func(l string) bool { return len(l) > whyMessage+100 }) {
		t.Errorf("it is no screen:\n%s", said)
	}
}

func TestWhyOfWhatIsAsItShouldBe(t *testing.T) {
	stopped := vmWith(is(v1alpha1.ConditionScheduled, metav1.ConditionFalse, v1alpha1.ReasonNotWanted, ""), is(v1alpha1.ConditionRunning, metav1.ConditionFalse, v1alpha1.ReasonNotRunning, ""))
	stopped.Spec.State = v1alpha1.StateStopped
	paused := vmWith(is(v1alpha1.ConditionRunning, metav1.ConditionFalse, v1alpha1.ReasonPaused, ""))
	paused.Spec.State = v1alpha1.StatePaused
	ended := vmWith(is(v1alpha1.ConditionRunning, metav1.ConditionFalse, v1alpha1.ReasonPoweredOff, ""))
	ended.Spec.RestartPolicy, ended.Status.Ended = v1alpha1.RestartNever, &v1alpha1.Ended{Phase: v1alpha1.PhaseSucceeded}
	unseen := vmWith()
	unseen.Status.ObservedGeneration = -1
	resets := vmWith(is(v1alpha1.ConditionRunning, metav1.ConditionTrue, v1alpha1.ReasonGuestResetLoop, ""))
	for want, vm := range map[string]*v1alpha1.VirtualMachine{
		"Nothing is in its way.": vmWith(is(v1alpha1.ConditionRunning, metav1.ConditionTrue, v1alpha1.ReasonStarted, ""), is(v1alpha1.ConditionGuestAgentConnected, metav1.ConditionFalse, v1alpha1.ReasonGuestAgentNotConnected, "")),
		"It is stopped, as its spec asks.\n  next: kubectl vm start web":  stopped,
		"It is paused, as its spec asks.\n  next: kubectl vm unpause web": paused,
		"next: kubectl vm start web, to run it once more":                 ended,
		"next: kubectl vm doctor":                                         unseen,
		"Running is True: GuestResetLoop":                                 resets,
	} {
		if said := explain(whyFacts{vm: vm}); !strings.Contains(said, want) {
			t.Errorf("it does not say %q:\n%s", want, said)
		}
	}
}
