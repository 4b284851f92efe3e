package cli

import (
	"cmp"
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
	host    *v1alpha1.VirtualMachineHost
	events  []corev1.Event
	console []string
}

func (s *session) why() *cobra.Command {
	return s.verb("why NAME", "Explain what is in the way of a guest, from its conditions down to its host, and what to do next", cobra.ExactArgs(1), 1, func(ctx context.Context, args []string) error {
		vm, err := s.vm(ctx, args[0])
		if err != nil {
			return err
		}
		all, err := s.around(ctx, vm)
		facts := whyFacts{vm: vm}
		for _, object := range all {
			switch o := object.(type) {
			case *corev1.Pod:
				facts.console = s.lastLines(ctx, o)
			case *v1alpha1.VirtualMachineHost:
				facts.host = o
			case *corev1.Event:
				facts.events = append(facts.events, *o)
			}
		}
		facts.write(s.Out)
		return err
	})
}

// lastLines are the console's, of the run before if this one has said nothing. It is nothing where there are none to read.
func (s *session) lastLines(ctx context.Context, pod *corev1.Pod) []string {
	for _, previous := range []bool{false, true} {
		o := corev1.PodLogOptions{Previous: previous, TailLines: new(int64(whyConsoleLines)), LimitBytes: new(int64(64 << 10))}
		raw, err := s.log(pod, o).DoRaw(ctx)
		if text := strings.TrimSpace(string(raw)); err == nil && text != "" {
			return strings.Split(text, "\n")
		}
	}
	return nil
}

// write explains in one screen.
func (f *whyFacts) write(out io.Writer) {
	w, vm := whyWriter{out}, f.vm
	w.line("%s/%s in %s: %s", resourceName, vm.Name, vm.Namespace, vm.Status.Phase)
	found := f.conditions(w)
	if e := vm.Status.LastExit; e != nil && (vm.Status.Restarts > 0 || !runs(vm)) {
		w.line("last exit: %s, code %s, %s ago", e.Reason, e.ExitCode, since(e.Time.Time))
		w.explain(e.Reason, e.Message)
	}
	for _, p := range vm.Status.PendingChanges {
		w.line("pending: %s: %s → %s: kubectl vm restart %s", p.Path, p.From, p.To, vm.Name)
	}
	warnings := slices.DeleteFunc(slices.Clone(f.events), func(e corev1.Event) bool {
		return e.Type != corev1.EventTypeWarning || e.InvolvedObject.Kind != "Pod"
	})
	slices.SortFunc(warnings, func(a, b corev1.Event) int { return b.LastTimestamp.Compare(a.LastTimestamp.Time) })
	for _, e := range warnings[:min(len(warnings), whyEvents)] {
		w.line("pod %s: %s: %s", e.InvolvedObject.Name, e.Reason, e.Message)
	}
	found = f.ofHost(w) || found
	switch {
	case len(vm.Status.Conditions) == 0 && vm.Status.ObservedGeneration <= 0:
		w.line("Berth's operator has not looked at it.\n  next: kubectl vm doctor")
	case !found && vm.Status.Ended != nil:
		w.line("It has ended, and its restartPolicy %s leaves it so.\n  next: kubectl vm start %s, to run it once more", vm.Spec.RestartPolicy, vm.Name)
	case !found && vm.Spec.State == v1alpha1.StateStopped:
		w.line("It is stopped, as its spec asks.\n  next: kubectl vm start %s", vm.Name)
	case !found && vm.Spec.State == v1alpha1.StatePaused:
		w.line("It is paused, as its spec asks.\n  next: kubectl vm unpause %s", vm.Name)
	case !found:
		w.line("Nothing is in its way.")
	}
	for i, line := range f.console[max(0, len(f.console)-whyConsoleLines):] {
		if i == 0 {
			w.line("console:")
		}
		w.line("  %s", strings.TrimRight(line, "\r"))
	}
}

// conditions explains those that are not as they should be, each reason once: Ready and Stalled repeat the others'.
func (f *whyFacts) conditions(w whyWriter) bool {
	var told []string
	for _, kind := range []string{
		v1alpha1.ConditionScheduled, v1alpha1.ConditionDisksReady, v1alpha1.ConditionRunning, v1alpha1.ConditionUpToDate, v1alpha1.ConditionReady, v1alpha1.ConditionStalled,
	} {
		if c := meta.FindStatusCondition(f.vm.Status.Conditions, kind); c != nil && !f.asItShouldBe(c) && !slices.Contains(told, c.Reason) {
			told = append(told, c.Reason)
			w.line("%s is %s: %s, for %s", c.Type, c.Status, c.Reason, since(c.LastTransitionTime.Time))
			w.explain(v1alpha1.Reason(c.Reason), c.Message)
		}
	}
	return len(told) > 0
}

// asItShouldBe: nothing is to be explained about this condition.
func (f *whyFacts) asItShouldBe(c *metav1.Condition) bool {
	isOne := func(reasons ...v1alpha1.Reason) bool { return slices.Contains(reasons, v1alpha1.Reason(c.Reason)) }
	switch {
	case c.Type == v1alpha1.ConditionStalled:
		return c.Status == metav1.ConditionFalse
	case c.Status == metav1.ConditionTrue:
		return !v1alpha1.Reason(c.Reason).IsWarning() // a guest that resets again and again counts as running
	case f.vm.Spec.State == v1alpha1.StateStopped || f.vm.DeletionTimestamp != nil:
		return isOne(v1alpha1.ReasonNotWanted, v1alpha1.ReasonNotRunning, v1alpha1.ReasonDisksRemoved)
	case f.vm.Status.Ended != nil && f.vm.Status.Ended.Phase == v1alpha1.PhaseSucceeded:
		return isOne(v1alpha1.ReasonPoweredOff, v1alpha1.ReasonShutDown, v1alpha1.ReasonNotRunning)
	}
	return f.vm.Spec.State == v1alpha1.StatePaused && isOne(v1alpha1.ReasonPaused)
}

// ofHost tells what is wrong with the guest's host. What only weakens a promise is not in this guest's way.
func (f *whyFacts) ofHost(w whyWriter) (found bool) {
	if f.host == nil {
		return false
	}
	if c := meta.FindStatusCondition(f.host.Status.Conditions, v1alpha1.ConditionHostReady); c != nil && c.Status != metav1.ConditionTrue {
		found = true
		w.line("host %s is not Ready: %s", f.host.Name, c.Reason)
		w.explain(v1alpha1.Reason(c.Reason), c.Message)
	}
	problems := slices.Clone(f.host.Status.Problems)
	rank := map[bool]int{true: -1} // what blocks comes first
	slices.SortStableFunc(problems, func(a, b v1alpha1.HostProblem) int { return rank[a.Blocking] - rank[b.Blocking] })
	for _, p := range problems[:min(len(problems), whyProblems)] {
		w.line("host %s: %s: %s", f.host.Name, p.Name, p.Message)
	}
	if more := len(problems) - whyProblems; more > 0 {
		w.line("host %s: %s problems more: kubectl vm doctor", f.host.Name, more)
	}
	return found
}

// whyWriter writes lines that a terminal can show.
type whyWriter struct{ io.Writer }

// line writes what format says; what it is about is shortened and stays on the line.
func (w whyWriter) line(format string, args ...any) {
	for i, a := range args {
		text := []rune(clean(fmt.Sprint(a)))
		args[i] = string(text[:min(len(text), whyMessage)])
	}
	fmt.Fprintf(w, format+"\n", args...)
}

// explain tells the message of a reason, its cause where that says more, and the next step.
func (w whyWriter) explain(reason v1alpha1.Reason, message string) {
	if message != "" && message != reason.When() {
		w.line("  %s", message)
	}
	w.line("  cause: %s", cmp.Or(reason.When(), "a reason of another version of Berth"))
	w.line("  next: %s", cmp.Or(reason.Next(), "wait: it goes on by itself."))
}
