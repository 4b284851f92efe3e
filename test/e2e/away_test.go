package e2e

import (
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// TestAgentAway and TestOperatorAway have guests end, stop, start and go on while a part of Berth is not there. Once it
// is back all is as if it had never left.
func TestAgentAway(t *testing.T) {
	l := startAlone(t)
	l.journeys(func() (back func()) {
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

func TestOperatorAway(t *testing.T) {
	l := startAlone(t)
	l.journeys(func() (back func()) {
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
	name string // of the VirtualMachine
	more string // lines of its spec
	// before is how it is at first; not there at all if that is nil.
	before func(*v1alpha1.VirtualMachine) bool
	does   func(l *lab, vm *v1alpha1.VirtualMachine)
	// after tells what it must come to, and whether in the same berth.
	after    func(*v1alpha1.VirtualMachine) bool
	replaced bool
}

var journeys = []journey{
	{name: "stays", before: isReady, does: says("count"), after: isReady},
	{name: "reboots", before: isReady, does: says("reboot"), after: isReady},
	{name: "powers-off", before: isReady, does: says("poweroff"), after: restartedAfter(v1alpha1.ReasonPoweredOff, 0)},
	{
		name: "is-killed", more: "  restartPolicy: OnFailure\n", before: isReady, does: killQEMU,
		after: restartedAfter(v1alpha1.ReasonQEMUFailed, 1),
	},
	{
		name: "panics", more: "  restartPolicy: Never\n", before: isReady, does: says("panic"),
		after: func(vm *v1alpha1.VirtualMachine) bool {
			return phase(v1alpha1.PhaseFailed)(vm) && exited(vm, v1alpha1.ReasonGuestPanicked, 134)
		},
	},
	{name: "pauses", before: isReady, does: asks(`{"state":"Paused"}`), after: phase(v1alpha1.PhasePaused)},
	{name: "resumes", more: "  state: Paused\n", before: phase(v1alpha1.PhasePaused), does: asks(`{"state":"Running"}`), after: isReady},
	{
		name: "stops", before: isReady, does: asks(`{"state":"Stopped"}`), replaced: true,
		after: func(vm *v1alpha1.VirtualMachine) bool {
			return phase(v1alpha1.PhaseStopped)(vm) && exited(vm, v1alpha1.ReasonPoweredOff, 0)
		},
	},
	{name: "restarts", before: isReady, does: asks(`{"restartedAt":"now"}`), after: isReady, replaced: true},
	{
		name: "goes", before: isReady, after: isGone[v1alpha1.VirtualMachine], replaced: true,
		does: func(l *lab, vm *v1alpha1.VirtualMachine) { l.kubectl("", "delete", "vm", vm.Name, "--wait=false") },
	},
	{name: "comes", after: isReady},
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
func (l *lab) journeys(leave func() (back func())) {
	manifest := func(j journey) string { return strings.Replace(tiny, "name: tiny", "name: "+j.name, 1) + j.more }
	for _, j := range journeys {
		if j.before != nil {
			l.apply(manifest(j))
		}
	}
	vms, consoles := map[string]*v1alpha1.VirtualMachine{}, map[string]*console{}
	for _, j := range journeys {
		if j.before == nil {
			continue
		}
		vms[j.name] = l.vm(j.name, "to begin", j.before)
		consoles[j.name] = l.logs(j.name)
	}
	for _, j := range journeys {
		if j.before != nil && j.name != "resumes" {
			consoles[j.name].await("tiny: up")
		}
	}
	back := leave()
	for _, j := range journeys {
		if j.before == nil {
			l.apply(manifest(j))
		} else {
			j.does(l, vms[j.name])
		}
	}
	consoles["stays"].await("count 20") // it goes on meanwhile
	consoles["reboots"].awaitTimes("tiny: up", 2)
	back()
	for _, j := range journeys {
		vm := l.vm(j.name, "to come to its end", j.after)
		if vm == nil {
			nothingLeft(l, string(vms[j.name].UID))
			continue
		}
		if vm.Status.Berth != nil && vms[j.name] != nil && (vm.Status.Berth.PodUID != vms[j.name].Status.Berth.PodUID) != j.replaced {
			l.Errorf("%s is in berth %s, was in %s; replaced: %t", j.name, vm.Status.Berth.PodUID, vms[j.name].Status.Berth.PodUID, j.replaced)
		}
	}
	for _, name := range []string{"stays", "reboots"} {
		pod := l.pod(name, "to be there", func(p *corev1.Pod) bool { return p != nil })
		if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 {
			l.Errorf("%s was restarted %d times", name, n)
		}
	}
	counted(l, consoles["stays"].String())
}

// counted: what a guest has counted on its console has neither a gap nor a repeat.
func counted(l *lab, console string) {
	l.Helper()
	next := 1
	for line := range strings.Lines(console) {
		word, rest, _ := strings.Cut(strings.TrimRight(line, "\r\n"), " ")
		if word != "count" || rest == "" || !strings.HasSuffix(line, "\n") { // the command itself, or half a line
			continue
		}
		if rest != strconv.Itoa(next) {
			l.Fatalf("the guest counted %q after %d", rest, next-1)
		}
		next++
	}
	if next == 1 {
		l.Error("the guest counted nothing")
	}
}
