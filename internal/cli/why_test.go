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

// TestEachReasonNamesItsCauseAndTheNextStep walks the table of reasons, each wherever it can stand. Those of Events alone are
// in nobody's way, and whether a guest agent is connected is in nobody's either.
func TestEachReasonNamesItsCauseAndTheNextStep(t *testing.T) {
	for _, reason := range v1alpha1.Reasons() {
		for _, in := range reason.In() {
			if in == v1alpha1.InCommit { // of another object than the VM
				continue
			}
			t.Run(string(reason)+" in "+in, func(t *testing.T) {
				f, status := whyFacts{vm: vmWith()}, metav1.ConditionFalse
				if reason.Next() == "" { // all is well
					status = metav1.ConditionTrue
				}
				told := in + " is False: " + string(reason)
				switch in {
				case v1alpha1.InHost:
					f.host = &v1alpha1.VirtualMachineHost{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
					f.host.Status.Conditions = []metav1.Condition{is(v1alpha1.ConditionHostReady, status, reason, "said by the one who knows")}
					told = "host n1 is not Ready: " + string(reason)
				case v1alpha1.InLastExit:
					f.vm.Status.LastExit = &v1alpha1.LastExit{Reason: reason, Message: "said by the one who knows"}
					told = "last exit: " + string(reason)
				default:
					f.vm.Status.Conditions = []metav1.Condition{is(in, status, reason, "said by the one who knows"), is(v1alpha1.ConditionReady, status, reason, "the same")}
				}
				said := explain(f)
				if status == metav1.ConditionTrue || in == v1alpha1.ConditionGuestAgentConnected {
					if strings.Contains(said, told) {
						t.Errorf("it explains what is well:\n%s", said)
					}
					return
				}
				for _, want := range []string{told, "said by the one who knows", "cause: " + reason.When(), "next: " + reason.Next()} {
					if !strings.Contains(said, want) {
						t.Errorf("it does not say %q:\n%s", want, said)
					}
				}
				if strings.Count(said, string(reason)+", for") > 1 {
					t.Errorf("Ready repeats what is said already:\n%s", said)
				}
			})
		}
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
