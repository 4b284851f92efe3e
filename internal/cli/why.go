package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
)

// How much of each why shows, so that all of it is one screen.
const (
	whyConsoleLines = 5
	whyEvents       = 3
	whyProblems     = 3
	whyMessage      = 400 // characters
)

// whyFacts is all that why knows of a VirtualMachine. What is not there, or not for this user to see, is nil.
type whyFacts struct {
	vm      *v1alpha1.VirtualMachine
	pod     *corev1.Pod
	host    *v1alpha1.VirtualMachineHost
	events  []corev1.Event
	console []string
}

func (s *session) why() *cobra.Command {
	return &cobra.Command{
		Use:               "why NAME",
		Short:             "Explain what is in the way of a guest, from its conditions down to its host, and what to do next",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: s.complete(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			vm, err := s.vm(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			all, err := s.around(cmd.Context(), vm)
			if err != nil {
				return err
			}
			facts := whyFacts{vm: vm}
			for _, object := range all {
				switch o := object.(type) {
				case *corev1.Pod:
					facts.pod = o
				case *v1alpha1.VirtualMachineHost:
					facts.host = o
				case *corev1.Event:
					facts.events = append(facts.events, *o)
				}
			}
			facts.console = s.lastLines(cmd.Context(), facts.pod)
			facts.write(s.Out)
			return nil
		},
	}
}

// lastLines are the console's, of the run before if this one has said nothing. It is nothing where there are none to read.
func (s *session) lastLines(ctx context.Context, pod *corev1.Pod) []string {
	clients, err := s.factory.KubernetesClientSet()
	if pod == nil || err != nil {
		return nil
	}
	for _, previous := range []bool{false, true} {
		raw, err := clients.CoreV1().Pods(pod.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
			Container: berth.Container, Previous: previous, TailLines: new(int64(whyConsoleLines)), LimitBytes: new(int64(64 << 10)),
		}).Do(ctx).Raw()
		if text := strings.TrimSpace(string(raw)); err == nil && text != "" {
			return strings.Split(text, "\n")
		}
	}
	return nil
}

// write explains in one screen.
func (f *whyFacts) write(out io.Writer) {
	w := whyWriter{out}
	vm := f.vm
	w.line(0, "%s/%s in %s: %s", resourceName, vm.Name, vm.Namespace, situationWord(vm))
	found := f.conditions(w)
	f.lastExit(w)
	for _, p := range vm.Status.PendingChanges {
		w.line(0, "pending: %s: %q → %q, by %s", p.Path, p.From, p.To, map[v1alpha1.ChangeEffect]string{
			v1alpha1.EffectRestart: "a restart", v1alpha1.EffectNewBerth: "kubectl vm restart " + vm.Name,
		}[p.Effect])
	}
	found = f.ofPod(w) || found
	found = f.ofHost(w) || found
	switch {
	case len(vm.Status.Conditions) == 0 && vm.Status.ObservedGeneration <= 0:
		w.line(0, "Berth's operator has not looked at it.")
		w.line(1, "next: kubectl vm doctor")
	case !found && vm.Status.Ended != nil:
		w.line(0, "It has ended, and its restartPolicy %s leaves it so.", vm.Spec.RestartPolicy)
		w.line(1, "next: kubectl vm start %s, to run it once more", vm.Name)
	case !found && vm.Spec.State != v1alpha1.StateRunning:
		w.line(0, "It is %s, as its spec asks.", strings.ToLower(string(vm.Spec.State)))
		w.line(1, "next: kubectl vm %s %s", map[v1alpha1.State]string{v1alpha1.StateStopped: "start", v1alpha1.StatePaused: "unpause"}[vm.Spec.State], vm.Name)
	case !found:
		w.line(0, "Nothing is in its way.")
	}
	if len(f.console) > 0 {
		w.line(0, "console:")
		for _, line := range f.console[max(0, len(f.console)-whyConsoleLines):] {
			w.line(1, "%s", strings.TrimRight(line, "\r"))
		}
	}
}

func situationWord(vm *v1alpha1.VirtualMachine) string {
	if vm.DeletionTimestamp != nil {
		return "is being deleted"
	}
	if vm.Status.Phase == "" {
		return "no status yet"
	}
	return string(vm.Status.Phase)
}

// conditions explains those that are not as they should be, each reason once: Ready and Stalled repeat the others'.
func (f *whyFacts) conditions(w whyWriter) (found bool) {
	var told []string
	for _, kind := range []string{
		v1alpha1.ConditionScheduled, v1alpha1.ConditionDisksReady, v1alpha1.ConditionRunning, v1alpha1.ConditionUpToDate, v1alpha1.ConditionReady, v1alpha1.ConditionStalled,
	} {
		c := meta.FindStatusCondition(f.vm.Status.Conditions, kind)
		if c == nil || f.asItShouldBe(c) || slices.Contains(told, c.Reason) {
			continue
		}
		told = append(told, c.Reason)
		found = true
		w.line(0, "%s is %s: %s, for %s", c.Type, c.Status, c.Reason, since(c.LastTransitionTime.Time))
		w.explain(v1alpha1.Reason(c.Reason), c.Message)
	}
	return found
}

// asItShouldBe: nothing is to be explained about this condition.
func (f *whyFacts) asItShouldBe(c *metav1.Condition) bool {
	reason := v1alpha1.Reason(c.Reason)
	switch {
	case c.Type == v1alpha1.ConditionStalled:
		return c.Status == metav1.ConditionFalse
	case c.Status == metav1.ConditionTrue:
		return reason == "" || !reason.IsWarning() // a guest that resets again and again counts as running
	case f.vm.Spec.State == v1alpha1.StateStopped || f.vm.DeletionTimestamp != nil:
		return reason == v1alpha1.ReasonNotWanted || reason == v1alpha1.ReasonNotRunning || reason == v1alpha1.ReasonDisksRemoved
	case f.vm.Spec.State == v1alpha1.StatePaused:
		return reason == v1alpha1.ReasonPaused
	case f.vm.Status.Ended != nil && f.vm.Status.Ended.Phase == v1alpha1.PhaseSucceeded:
		return reason == v1alpha1.ReasonPoweredOff || reason == v1alpha1.ReasonShutDown || reason == v1alpha1.ReasonNotRunning
	}
	return false
}

// lastExit explains how the guest last ended, if that is of interest.
func (f *whyFacts) lastExit(w whyWriter) {
	e := f.vm.Status.LastExit
	if e == nil || f.vm.Status.Restarts == 0 && runs(f.vm) {
		return
	}
	w.line(0, "last exit: %s, code %d, %s ago", e.Reason, e.ExitCode, since(e.Time.Time))
	w.explain(e.Reason, e.Message)
}

// ofPod tells what kubelet and the scheduler say.
func (f *whyFacts) ofPod(w whyWriter) (found bool) {
	if f.pod == nil {
		return false
	}
	for _, c := range f.pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			found = true
			w.line(0, "pod %s has no node: %s", f.pod.Name, shortened(c.Message))
		}
	}
	if c := guestContainer(f.pod); c != nil && c.State.Waiting != nil && c.State.Waiting.Reason != "ContainerCreating" {
		found = true
		w.line(0, "pod %s waits: %s: %s", f.pod.Name, c.State.Waiting.Reason, shortened(c.State.Waiting.Message))
	}
	var warnings []corev1.Event
	for _, e := range f.events {
		if e.Type == corev1.EventTypeWarning && e.InvolvedObject.UID == f.pod.UID {
			warnings = append(warnings, e)
		}
	}
	slices.SortFunc(warnings, func(a, b corev1.Event) int { return b.LastTimestamp.Compare(a.LastTimestamp.Time) })
	for _, e := range warnings[:min(len(warnings), whyEvents)] {
		w.line(0, "pod %s: %s: %s", f.pod.Name, e.Reason, shortened(e.Message))
	}
	return found
}

// ofHost tells what is wrong with the guest's host. What only weakens a promise is not in this guest's way.
func (f *whyFacts) ofHost(w whyWriter) (found bool) {
	if f.host == nil {
		return false
	}
	for _, c := range f.host.Status.Conditions {
		if c.Type == v1alpha1.ConditionHostReady && c.Status != metav1.ConditionTrue {
			found = true
			w.line(0, "host %s is not Ready: %s", f.host.Name, c.Reason)
			w.explain(v1alpha1.Reason(c.Reason), c.Message)
		}
	}
	problems := slices.Clone(f.host.Status.Problems)
	slices.SortStableFunc(problems, func(a, b v1alpha1.HostProblem) int { // what blocks comes first
		return map[bool]int{true: 0, false: 1}[a.Blocking] - map[bool]int{true: 0, false: 1}[b.Blocking]
	})
	for _, p := range problems[:min(len(problems), whyProblems)] {
		w.line(0, "host %s: %s: %s", f.host.Name, p.Name, shortened(p.Message))
	}
	if more := len(problems) - whyProblems; more > 0 {
		w.line(0, "host %s: %d problems more: kubectl vm doctor", f.host.Name, more)
	}
	return found
}

// whyWriter writes lines that a terminal can show.
type whyWriter struct{ io.Writer }

func (w whyWriter) line(depth int, format string, args ...any) {
	fmt.Fprintln(w, strings.Repeat("  ", depth)+clean(fmt.Sprintf(format, args...)))
}

// explain tells the message of a reason, its cause where that says more, and the next step.
func (w whyWriter) explain(reason v1alpha1.Reason, message string) {
	if message != "" && message != reason.When() {
		w.line(1, "%s", shortened(message))
	}
	if when := reason.When(); when != "" {
		w.line(1, "cause: %s", when)
	}
	next := reason.Next()
	if next == "" {
		next = "wait: it goes on by itself."
	}
	w.line(1, "next: %s", next)
}

func shortened(text string) string {
	if runes := []rune(text); len(runes) > whyMessage {
		return string(runes[:whyMessage]) + "…"
	}
	return text
}
