package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

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

// installed is what the chart makes.
var installed = map[metav1.TypeMeta][]string{
	{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"}: {"virtualmachines.berth.dev", "virtualmachineimages.berth.dev", "virtualmachinecommits.berth.dev", "virtualmachinehosts.berth.dev"},
	{APIVersion: "admissionregistration.k8s.io/v1", Kind: "ValidatingAdmissionPolicyBinding"}: {
		"berth-agent-guests", "berth-agent-host", "berth-agent-events", "berth-berths", "berth-disks", "berth-disks-finalizer",
	},
}

// patient is what a doctor has found.
type patient struct {
	*session
	own      string // version of this program
	operator string // version of it, as far as it is known
	isIll    bool
}

func (s *session) doctor() *cobra.Command {
	return s.verb("doctor", "Check Berth in this cluster and namespace; the exit code is 1 if anything is wrong", cobra.NoArgs, -1, func(ctx context.Context, _ []string) error {
		p := &patient{session: s, own: ownVersion()}
		for _, check := range []func(context.Context) error{p.installed, p.workloads, p.nodes, p.quota, p.guests} {
			if err := check(ctx); apierrors.IsForbidden(err) {
				fmt.Fprintf(s.Out, "?      %s: an administrator can\n", clean(err.Error()))
			} else if err != nil {
				return err
			}
		}
		if p.isIll {
			return exitCode(1)
		}
		return nil
	})
}

func (p *patient) ok(format string, args ...any) {
	fmt.Fprintln(p.Out, "ok     "+clean(fmt.Sprintf(format, args...)))
}

func (p *patient) wrong(format string, args ...any) {
	p.isIll = true
	fmt.Fprintln(p.Out, "WRONG  "+clean(fmt.Sprintf(format, args...)))
}

// installed looks for what the chart makes.
func (p *patient) installed(ctx context.Context) error {
	for kind, names := range installed {
		for _, name := range names {
			err := p.api.Get(ctx, client.ObjectKey{Name: name}, &metav1.PartialObjectMetadata{TypeMeta: kind})
			switch {
			case apierrors.IsNotFound(err):
				p.wrong("%s %s is missing: install Berth's chart", kind.Kind, name)
			case err != nil:
				return err
			default:
				p.ok("%s %s", kind.Kind, name)
			}
		}
	}
	return nil
}

// partOfBerth are the chart's workloads: one Deployment, the operator's, and one DaemonSet, the agent's.
var partOfBerth = metav1.ListOptions{LabelSelector: "app.kubernetes.io/part-of=berth"}

func (p *patient) workloads(ctx context.Context) error {
	operators, err := p.clients.AppsV1().Deployments("").List(ctx, partOfBerth)
	agents, failure := p.clients.AppsV1().DaemonSets("").List(ctx, partOfBerth)
	if err := errors.Join(err, failure); err != nil {
		return err
	}
	for name, count := range map[string]int{"berth-operator": len(operators.Items), "berth-agent": len(agents.Items)} {
		if count == 0 {
			p.wrong("there is no %s: install Berth's chart", name)
		}
	}
	for _, o := range operators.Items {
		p.operator = versionOf(o.Spec.Template)
		p.pods("berth-operator", o.Namespace, p.operator, *o.Spec.Replicas, o.Status.ReadyReplicas)
	}
	for _, a := range agents.Items {
		if a.Status.DesiredNumberScheduled == 0 {
			p.wrong("no node is to have an agent: change agent.nodeSelector or agent.tolerations in the chart's values")
			continue
		}
		p.pods("berth-agent", a.Namespace, versionOf(a.Spec.Template), a.Status.DesiredNumberScheduled, a.Status.NumberReady)
	}
	if differ(p.own, p.operator, 2) {
		p.wrong("this kubectl-vm is of version %s, the operator of %s: install the kubectl-vm of that version", p.own, p.operator)
	}
	return nil
}

// release is a version of a release, with the parts 1, which is all of it, and 2, its first two numbers.
var release = regexp.MustCompile(`^v?((\d+\.\d+)\.\d+(?:-[a-z][a-z0-9.]*)?)$`)

// differ tells whether a part of two releases differs. A developer's build differs from none.
func differ(one, other string, part int) bool {
	a, b := release.FindStringSubmatch(one), release.FindStringSubmatch(other)
	return a != nil && b != nil && a[part] != b[part]
}

func (p *patient) pods(of, namespace, version string, wanted, ready int32) {
	if ready < wanted {
		p.wrong("%d of %d pods of %s are not ready: kubectl -n %s describe pods -l app.kubernetes.io/name=%[3]s", wanted-ready, wanted, of, namespace)
		return
	}
	p.ok("%s %s: %d", of, version, ready)
}

// versionOf is the tag of a workload's image.
func versionOf(template corev1.PodTemplateSpec) string {
	image, _, _ := strings.Cut(template.Spec.Containers[0].Image, "@")
	return image[strings.LastIndex(image, ":")+1:]
}

func (p *patient) nodes(ctx context.Context) error {
	hosts, err := p.hosts(ctx)
	if meta.IsNoMatchError(err) {
		return nil // guests says so
	} else if err != nil {
		return err
	}
	if len(hosts) == 0 {
		p.wrong("no node has reported as a KVM host: look at the agents' logs")
	}
	for _, h := range hosts {
		for _, problem := range h.Status.Problems {
			p.wrong("host %s: %s: %s", h.Name, problem.Name, problem.Message)
		}
		if differ(h.Status.AgentVersion, p.operator, 1) {
			p.wrong("host %s: its agent is of version %s, the operator of %s: wait for the rollout, or upgrade the chart", h.Name, h.Status.AgentVersion, p.operator)
		} else if first := hosts[0]; h.Status.AgentVersion != first.Status.AgentVersion {
			p.wrong("host %s: its agent is of version %s, that of %s %s: wait for the rollout", h.Name, h.Status.AgentVersion, first.Name, first.Status.AgentVersion)
		}
		if c := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionHostReady); c == nil {
			p.wrong("host %s is not Ready: its agent has not reported", h.Name)
		} else if c.Status != metav1.ConditionTrue {
			p.wrong("host %s is not Ready: %s: %s %s", h.Name, c.Reason, c.Message, v1alpha1.Reason(c.Reason).Next())
		} else if len(h.Status.Problems) == 0 {
			p.ok("host %s: %s, libvirt %s, QEMU %s", h.Name, h.Status.Acceleration, h.Status.LibvirtVersion, h.Status.QEMUVersion)
		}
	}
	return nil
}

// quota looks at the namespace: guests' pods meet every level of Pod Security, so what is left to be in the way is quota.
func (p *patient) quota(ctx context.Context) error {
	namespace := &corev1.Namespace{}
	if err := p.api.Get(ctx, client.ObjectKey{Name: p.namespace}, namespace); apierrors.IsNotFound(err) {
		p.wrong("namespace %s is missing: create it, or name another by -n", p.namespace)
		return nil
	} else if err != nil {
		return err
	}
	p.ok("namespace %s: its Pod Security level (%s) lets guests' pods in", p.namespace, cmp.Or(namespace.Labels["pod-security.kubernetes.io/enforce"], "none"))
	quotas := &corev1.ResourceQuotaList{}
	err := p.api.List(ctx, quotas, client.InNamespace(p.namespace))
	for _, q := range quotas.Items {
		for name, hard := range q.Status.Hard {
			if used := q.Status.Used[name]; used.Cmp(hard) >= 0 {
				p.wrong("quota %s: %s of %s %s are used: no guest more starts here before it is raised, or something else goes", q.Name, used.String(), hard.String(), name)
			}
		}
	}
	return err
}

// guests looks for those that wait for somebody.
func (p *patient) guests(ctx context.Context) error {
	list, err := p.list(ctx, p.namespace, "")
	for _, vm := range list.Items {
		for _, c := range vm.Status.Conditions {
			if reason := v1alpha1.Reason(c.Reason); c.Status != metav1.ConditionTrue && reason.StandsIn(c.Type) && reason.IsWarning() && vm.Status.Ended == nil {
				p.wrong("%[1]s/%[2]s: %[3]s: kubectl vm why %[2]s", resourceName, vm.Name, c.Reason)
			}
		}
	}
	if explained(err) != err { //nolint:errorlint // whether it is another
		p.wrong("this cluster does not serve %s: install the chart of this kubectl-vm's version", v1alpha1.GroupVersion)
		return nil
	}
	return err
}
