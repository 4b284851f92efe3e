package e2e

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestAway has guests end, stop, start and go on while a part of Berth is not there. Once it is back all is as if it had
// never left. TestKilled has the same guests do the same without an operator, in less time.
func TestAway(t *testing.T) {
	t.Run("agent", agentAway)
	if *depth > 0 {
		t.Run("operator", operatorAway)
	}
}

func agentAway(t *testing.T) {
	l := startAlone(t)
	l.journeys(few(journeysOf(l.ns)), func() (back func()) {
		leave := func(where string) {
			l.system("patch", "daemonset/berth-agent", "--type=merge", "-p", `{"spec":{"template":{"spec":{"nodeSelector":`+where+`}}}}`)
		}
		t.Cleanup(func() { leave("null") })
		leave(`{"e2e":"nowhere"}`)
		l.system("wait", "pod", "--for=delete", "-l", "app.kubernetes.io/name=berth-agent", "--timeout=1m")
		return func() {
			leave("null")
			l.system("rollout", "status", "daemonset/berth-agent", "--timeout=1m")
		}
	})
}

func operatorAway(t *testing.T) {
	l := startAlone(t)
	l.journeys(few(journeysOf(l.ns)), func() (back func()) {
		scale := func(replicas string) { l.system("scale", "deployment/berth-operator", "--replicas="+replicas) }
		t.Cleanup(func() { scale("2") })
		scale("0")
		l.system("wait", "pod", "--for=delete", "-l", "app.kubernetes.io/name=berth-operator", "--timeout=1m")
		return func() {
			scale("2")
			l.system("rollout", "status", "deployment/berth-operator", "--timeout=1m")
		}
	})
}

// system runs kubectl in the namespace of Berth itself.
func (l *lab) system(args ...string) {
	l.Helper()
	l.undo(append([]string{"kubectl", "-n", "berth-system"}, args...)...)
}

// journey is what one guest does, or is asked to do.
type journey struct {
	name   string // of the VirtualMachine
	memory string // 96Mi if empty
	more   string // lines of its spec
	// before is how it is at first; not there at all if that is nil.
	before func(*v1alpha1.VirtualMachine) bool
	does   func(l *lab, vm *v1alpha1.VirtualMachine)
	// after tells what it must come to, and whether in the same berth.
	after    func(*v1alpha1.VirtualMachine) bool
	replaced bool
}

// journeysOf makes the journeys of a namespace.
func journeysOf(ns string) []journey {
	list := []journey{
		{name: "stays", before: isReady, does: says("count"), after: isReady},
		{name: "reboots", before: isReady, does: says("reboot"), after: isReady},
		{name: "pauses", before: isReady, does: asks(`{"state":"Paused"}`), after: phase(v1alpha1.PhasePaused)},
		{name: "resumes", more: "  state: Paused\n", before: phase(v1alpha1.PhasePaused), does: asks(`{"state":"Running"}`), after: isReady},
		{name: "restarts", before: isReady, does: asks(`{"restartedAt":"now"}`), after: isReady, replaced: true},
		{
			name: "stops", before: isReady, does: asks(`{"state":"Stopped"}`), replaced: true,
			after: func(vm *v1alpha1.VirtualMachine) bool {
				return phase(v1alpha1.PhaseStopped)(vm) && exited(vm, v1alpha1.ReasonShutDown, 0)
			},
		},
		{
			name: "is-forced", before: isReady, replaced: true,
			does: func(l *lab, vm *v1alpha1.VirtualMachine) {
				l.say(vm.Name, "deaf")
				l.logs(vm.Name).await("tiny: deaf")
				l.patch(vm.Name, `{"state":"Stopped","terminationGracePeriodSeconds":2}`)
			},
			after: func(vm *v1alpha1.VirtualMachine) bool {
				return phase(v1alpha1.PhaseStopped)(vm) && exited(vm, v1alpha1.ReasonForcedOff, 137)
			},
		},
		{
			name: "goes", before: isReady, after: isGone[v1alpha1.VirtualMachine], replaced: true,
			does: func(l *lab, vm *v1alpha1.VirtualMachine) { l.kubectl("", "delete", "vm", vm.Name, "--wait=false") },
		},
		{name: "comes", after: isReady},
		{
			name: "is-placed", more: "  nodeSelector: {" + ns + ": here}\n",
			before: func(vm *v1alpha1.VirtualMachine) bool {
				return has(vm, v1alpha1.ConditionScheduled, metav1.ConditionFalse, v1alpha1.ReasonUnschedulable)
			},
			does: func(l *lab, _ *v1alpha1.VirtualMachine) {
				node := nodes(l)[0]
				l.Cleanup(func() { l.undo("kubectl", "label", "node", node, ns+"-") })
				l.kubectl("", "label", "node", node, ns+"=here")
			},
			after: isReady,
		},
		{
			name: "is-muted", more: "  readinessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 1}\n",
			before: isReady, does: says("mute"),
			after: func(vm *v1alpha1.VirtualMachine) bool {
				return runs(vm) && has(vm, v1alpha1.ConditionReady, metav1.ConditionFalse, v1alpha1.ReasonProbesFailing)
			},
		},
		{
			name: "hangs", more: "  livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 2}\n" +
				"  startupProbe: {tcpSocket: {port: 80}, periodSeconds: 1, failureThreshold: 120}\n",
			before: isReady, does: says("mute"), after: restartedAfter(v1alpha1.ReasonShutDown, 0),
		},
		{
			name: "overeats", memory: "160Mi", before: isReady, after: restartedAfter(v1alpha1.ReasonOOMKilled, 137),
			does: func(l *lab, vm *v1alpha1.VirtualMachine) {
				squeeze(l, vm, 8)
				l.say(vm.Name, "eat 60")
			},
		},
	}
	for _, e := range endings() {
		list = append(list, e.journey())
	}
	return list
}

func (e ending) journey() journey {
	return journey{
		name: strings.ToLower(e.name + "-" + string(e.policy)), more: "  restartPolicy: " + string(e.policy) + "\n",
		before: isReady, does: e.cause, after: e.after,
	}
}

// few are the journeys that tell most. Each fault has all of them made when there is time for that.
func few(all []journey) []journey {
	if *depth > 0 {
		return all
	}
	return slices.DeleteFunc(all, func(j journey) bool {
		return !slices.Contains([]string{
			"stays", "reboots", "restarts", "stops", "goes", "comes", "poweroff-always", "kill-onfailure", "panic-never",
		}, j.name)
	})
}

func says(line string) func(*lab, *v1alpha1.VirtualMachine) {
	return func(l *lab, vm *v1alpha1.VirtualMachine) { l.Helper(); l.say(vm.Name, line) }
}

func asks(spec string) func(*lab, *v1alpha1.VirtualMachine) {
	return func(l *lab, vm *v1alpha1.VirtualMachine) { l.Helper(); l.patch(vm.Name, spec) }
}

func exited(vm *v1alpha1.VirtualMachine, reason v1alpha1.Reason, code int32) bool {
	e := vm.Status.LastExit
	return e != nil && e.Reason == reason && e.ExitCode == code
}

func restartedAfter(reason v1alpha1.Reason, code int32) func(*v1alpha1.VirtualMachine) bool {
	return func(vm *v1alpha1.VirtualMachine) bool {
		return isReady(vm) && vm.Status.Restarts == 1 && exited(vm, reason, code)
	}
}

// journeys has every guest begin, has a part of Berth leave, has every guest do what it does, and the part come back.
func (l *lab) journeys(list []journey, leave func() (back func())) {
	c := l.begin(list)
	back := leave()
	for _, j := range list {
		c.act(j)
	}
	c.consoles["stays"].await("count 20") // it goes on meanwhile
	c.consoles["reboots"].awaitTimes("tiny: up", 2)
	back()
	c.finish()
}

// company is guests on their journeys.
type company struct {
	*lab
	list     []journey
	vms      map[string]*v1alpha1.VirtualMachine // as they began
	consoles map[string]*console
	one      func() string // as watchOne's
}

func (l *lab) begin(list []journey) *company {
	c := &company{lab: l, list: list, vms: map[string]*v1alpha1.VirtualMachine{}, consoles: map[string]*console{}}
	manifests := ""
	for _, j := range list {
		if j.before != nil {
			manifests += "---" + j.manifest()
		}
	}
	l.apply(manifests)
	for _, j := range list {
		if j.before == nil {
			continue
		}
		c.vms[j.name] = l.vm(j.name, "to begin", j.before)
		if isReady(c.vms[j.name]) {
			c.consoles[j.name] = l.logs(j.name)
		}
	}
	var uids []string
	for _, vm := range c.vms {
		uids = append(uids, string(vm.UID))
	}
	c.one = watchOne(uids...)
	for _, console := range c.consoles {
		console.await("tiny: up")
	}
	return c
}

// act has a guest do what it does.
func (c *company) act(j journey) {
	if j.before == nil {
		c.apply(j.manifest())
	} else {
		j.does(c.lab, c.vms[j.name])
	}
}

// finish waits for every guest to come to its end. One that counted did so without a gap, and none was there twice.
func (c *company) finish() {
	for _, j := range c.list {
		before := c.vms[j.name]
		c.vm(j.name, "to come to its end", func(vm *v1alpha1.VirtualMachine) bool {
			return j.after(vm) && (vm == nil || before == nil || elsewhere(vm, before) == j.replaced)
		})
		if j.after(nil) {
			nothingLeft(c.lab, string(before.UID))
		}
	}
	for _, name := range []string{"stays", "reboots"} {
		if c.vms[name] == nil {
			continue
		}
		pod := c.pod(name, "to be there", func(p *corev1.Pod) bool { return p != nil })
		if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 {
			c.Errorf("%s was restarted %d times", name, n)
		}
	}
	counted(c.lab, c.kubectl("", "logs", "stays"))
	if several := c.one(); several != "" {
		c.Errorf("there were several QEMUs at once: %s", several)
	}
}

func (j journey) manifest() string {
	return strings.NewReplacer(
		"name: tiny", "name: "+j.name,
		"96Mi", cmp.Or(j.memory, "96Mi"),
		"terminationGracePeriodSeconds: 20", "terminationGracePeriodSeconds: 300", // a part is away for less
	).Replace(tiny) + j.more
}

// elsewhere tells whether a guest has another berth now than before, or none any more.
func elsewhere(now, before *v1alpha1.VirtualMachine) bool {
	is, was := now.Status.Berth, before.Status.Berth
	return was != nil && (is == nil || is.PodUID != was.PodUID)
}

// counted: what a guest has counted on its console has neither a gap nor a repeat.
func counted(l *lab, console string) {
	l.Helper()
	if lacks := uncounted(l, console); len(lacks) > 0 {
		l.Fatalf("the guest did not count %v", lacks)
	}
}

// uncounted is what a guest's count lacks, no two numbers in a row.
func uncounted(l *lab, console string) (lacks []int) {
	l.Helper()
	next := 1
	for line := range strings.Lines(console) {
		word, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if word != "count" || rest == "" || !strings.HasSuffix(line, "\n") { // the command itself, or half a line
			continue
		}
		if rest == strconv.Itoa(next+1) {
			lacks = append(lacks, next)
			next++
		}
		if rest != strconv.Itoa(next) {
			l.Fatalf("the guest counted %q after %d", rest, next-1)
		}
		next++
	}
	if next == 1 {
		l.Error("the guest counted nothing")
	}
	return lacks
}
