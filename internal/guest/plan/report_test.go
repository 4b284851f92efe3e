package plan

import (
	"errors"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
)

// ran is a VirtualMachine whose guest was reported as running.
func ran(vm *v1alpha1.VirtualMachine) {
	vm.Status.Conditions = []metav1.Condition{condition.New(v1alpha1.ConditionRunning, true, v1alpha1.ReasonStarted, "")}
}

// unknown is one of which the last word is that nothing is known.
func unknown(vm *v1alpha1.VirtualMachine) {
	vm.Status.Conditions = []metav1.Condition{condition.Unknown(v1alpha1.ConditionRunning, v1alpha1.ReasonLibvirtUnreachable, "")}
}

// poweredOff is one that is said to have powered off some time ago.
func poweredOff(vm *v1alpha1.VirtualMachine) {
	vm.Status.LastExit = exitOf(End{Reason: v1alpha1.ReasonPoweredOff}, now.Add(-30*time.Minute))
}

// endedAt is a berth of which kubelet says that its guest panicked.
func endedAt(at time.Time) func(*Berth) {
	return func(b *Berth) { b.Ended = &End{Reason: v1alpha1.ReasonGuestPanicked, Code: 134, Told: at} }
}

// lastingEnds are the memories of cases in which a state has lasted, by their names.
var lastingEnds = map[string]Memory{
	"a shim that was killed, of which kubelet says nothing":       {exitUnknown: now.Add(-exitUnknownLimit)},
	"nor before kubelet says how it ended, if no agent was there": {exitUnknown: now.Add(-(exitUnknownLimit - time.Second))},
	"or does not": {exitUnknown: now.Add(-exitUnknownLimit)},
}

func TestReport(t *testing.T) {
	notFound := fault.ByUser(v1alpha1.ReasonImageNotFound, errors.New("no such image"))
	gone := Have{Domain: DomainAbsent, Process: ProcessNone}
	tests := []struct {
		name    string
		want    Want
		have    Have
		failure error
		running string // status and reason of the condition
		disks   string
		exit    v1alpha1.Reason
		freed   types.UID
		wait    bool
	}{
		{
			name: "a guest that runs", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: &Shim{Attached: true}, Disks: []v1alpha1.DiskStatus{{Name: "root"}}},
			running: "True Started", disks: "True DisksReady",
		},
		{
			name: "one whose shim has not spoken yet to an agent that has just begun", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Disks: []v1alpha1.DiskStatus{{Name: "root"}}},
			running: "True Started", disks: "True DisksReady",
		},
		{
			name: "a start that goes well is not worth a word", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAbsent, Disks: []v1alpha1.DiskStatus{{Name: "root"}}},
			running: "False Starting", disks: "True DisksReady", wait: true,
		},
		{
			name: "until it takes long", want: Want{VM: vm(), Berth: fresh(old)},
			have:    Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAbsent, Disks: []v1alpha1.DiskStatus{{Name: "root"}}},
			running: "False Starting", disks: "True DisksReady",
		},
		{
			name: "a pull is told at once", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImagePulling)},
			running: "False Starting", disks: "False PullingImage",
		},
		{
			name: "so is an image that does not exist", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: map[string]Image{"root": {State: ImageFailed, Err: notFound}}},
			running: "False Starting", disks: "False ImageNotFound",
		},
		{
			name: "which a new attempt does not hide", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: map[string]Image{"root": {State: ImagePulling, Err: notFound}}},
			running: "False Starting", disks: "False ImageNotFound",
		},
		{
			name: "a step that failed for the disk's sake", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImageReady)},
			failure: fault.ByUser(v1alpha1.ReasonDiskTooSmall, errors.New("too small")),
			running: "False Starting", disks: "False DiskTooSmall",
		},
		{
			name: "a step that failed for another", want: Want{VM: vm(), Berth: fresh()},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImageReady)},
			failure: fault.ByUser(v1alpha1.ReasonDomainNameTaken, errors.New("taken")),
			running: "False DomainNameTaken", disks: "True DisksReady",
		},
		{
			name: "a libvirtd that does not answer", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Unknown: fault.ByTime(v1alpha1.ReasonLibvirtUnreachable, errors.New("no answer"))},
			running: "Unknown LibvirtUnreachable", disks: "False DisksReady",
		},
		{
			name: "a power-off", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Attached: true, Exiting: true}, End: &End{Reason: v1alpha1.ReasonPoweredOff}},
			running: "False PoweredOff", disks: "True DisksReady", exit: v1alpha1.ReasonPoweredOff,
		},
		{
			name: "an end that the shim was told, though the status says already that nothing runs", want: Want{VM: vm(), Berth: fresh(used, finished)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, End: &End{Reason: v1alpha1.ReasonPoweredOff, Told: now}},
			running: "False PoweredOff", disks: "True DisksReady", exit: v1alpha1.ReasonPoweredOff,
		},
		{
			name: "a QEMU that is about to end", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessPlaced, Container: ContainerAlive, Shim: &Shim{Attached: true}},
			running: "False Starting", disks: "True DisksReady", wait: true,
		},
		{
			name: "a shim that was killed, of which kubelet says nothing", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, End: &End{Reason: v1alpha1.ReasonDestroyed, Code: 137}},
			running: "False ShimLost", disks: "True DisksReady", exit: v1alpha1.ReasonShimLost,
		},
		{
			name: "one whose berth is no more, so that kubelet will say nothing", want: Want{VM: vm(ran), Vanished: "pod-1"},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, End: &End{Reason: v1alpha1.ReasonDestroyed, Code: 137}},
			running: "False NotRunning", disks: "True DisksReady", exit: v1alpha1.ReasonShimLost, freed: "pod-1",
		},
		{
			name: "a QEMU that was killed with its shim waits for kubelet's word", want: Want{VM: vm(ran), Berth: fresh(used)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, End: &End{Reason: v1alpha1.ReasonQEMUFailed, Code: 1}},
			running: "False NotRunning", disks: "True DisksReady", wait: true,
		},
		{
			name: "which knows of the memory that it had too little of", want: Want{VM: vm(ran), Berth: fresh(used, func(b *Berth) { b.Ended = &End{Reason: v1alpha1.ReasonOOMKilled, Code: 137, Told: now} })},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, End: &End{Reason: v1alpha1.ReasonQEMUFailed, Code: 1}},
			running: "False OOMKilled", disks: "True DisksReady", exit: v1alpha1.ReasonOOMKilled,
		},
		{
			name: "a shim that kubelet killed when the grace period was over", want: Want{VM: vm(ran), Berth: fresh(used, ending, func(b *Berth) { b.Ended = &End{Reason: ForcedOff.Reason, Code: 137, Told: now} })},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, End: &End{Reason: v1alpha1.ReasonDestroyed, Code: 137}},
			running: "False ForcedOff", disks: "True DisksReady", exit: v1alpha1.ReasonForcedOff, freed: "pod-1",
		},
		{
			name: "an end that only kubelet has told of, since the API server was away", want: Want{VM: vm(ran), Berth: fresh(used, endedAt(now.Add(-time.Minute)))},
			have:    Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}},
			running: "True Started", disks: "True DisksReady", exit: v1alpha1.ReasonGuestPanicked,
		},
		{
			name: "an end that kubelet tells of again", want: Want{VM: vm(ran, poweredOff), Berth: fresh(used, endedAt(now.Add(-time.Hour)))},
			have:    Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}},
			running: "True Started", disks: "True DisksReady", exit: v1alpha1.ReasonPoweredOff,
		},
		{
			name: "an ending berth is released when nothing is left in it", want: Want{VM: vm(ran), Berth: fresh(used, ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Attached: true, Exiting: true, Terminating: true}, End: &End{Reason: v1alpha1.ReasonPoweredOff}},
			running: "False PoweredOff", disks: "True DisksReady", exit: v1alpha1.ReasonPoweredOff, freed: "pod-1",
		},
		{
			name: "so is one whose pod is no more", want: Want{VM: vm(ran), Vanished: "pod-1"},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1",
		},
		{
			name: "but not before its guest is", want: Want{VM: vm(ran), Vanished: "pod-1"},
			have:    Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}},
			running: "True Started", disks: "False DisksReady",
		},
		{
			name: "nor before kubelet says how it ended, if no agent was there", want: Want{VM: vm(ran), Berth: fresh(ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1", wait: true,
		},
		{
			name: "nor if nobody knew of it when it ended", want: Want{VM: vm(unknown), Berth: fresh(ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1", wait: true,
		},
		{
			name: "which it does", want: Want{VM: vm(ran), Berth: fresh(used, ending, endedAt(now))},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False GuestPanicked", disks: "False DisksReady", exit: v1alpha1.ReasonGuestPanicked, freed: "pod-1",
		},
		{
			name: "or does not", want: Want{VM: vm(ran), Berth: fresh(ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1",
		},
		{
			name: "not while a process is left", want: Want{VM: vm(ran), Berth: fresh(used, ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessPlaced, Container: ContainerAlive},
			running: "False NotRunning", disks: "False DisksReady",
		},
		{
			name: "not while that is unknown", want: Want{VM: vm(ran), Berth: fresh(used, ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Unknown: errors.New("?")},
			running: "Unknown InternalError", disks: "True DisksReady",
		},
		{
			name: "a deleted guest without disks", want: Want{VM: vm(deleted), Berth: fresh(ending)}, have: gone,
			running: "False NotRunning", disks: "False DisksRemoved", freed: "pod-1",
		},
		{
			name: "an altered berth", want: Want{VM: vm(), Berth: fresh(altered)}, have: gone,
			running: "False BerthAltered", disks: "False DisksReady",
		},
		{
			name: "a shim that was told to end without a guest: that is no end of one", want: Want{VM: vm(), Berth: fresh(used, ending)},
			have:    Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, End: &End{Reason: v1alpha1.ReasonNotRunning, Told: now}},
			running: "False NotRunning", disks: "False DisksReady", freed: "pod-1",
		},
		{
			name: "an outdated berth", want: Want{VM: vm(), Berth: fresh(used, drifted)}, have: gone,
			running: "False BerthOutdated", disks: "False DisksReady",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.have.Disks == nil && tt.disks == "True DisksReady" {
				tt.have.Disks = []v1alpha1.DiskStatus{{Name: "root"}}
			}
			s, wait := Report(tt.want, tt.have, lastingEnds[tt.name], tt.failure, now)
			for _, c := range s.Conditions {
				if !v1alpha1.Reason(c.Reason).StandsIn(c.Type) {
					t.Errorf("the table of reasons does not have %s in %s", c.Reason, c.Type)
				}
			}
			if s.LastExit != nil && !s.LastExit.Reason.StandsIn(v1alpha1.InLastExit) {
				t.Errorf("the table of reasons does not have %s in lastExit", s.LastExit.Reason)
			}
			say := func(kind string) string {
				c := meta.FindStatusCondition(s.Conditions, kind)
				return string(c.Status) + " " + c.Reason
			}
			if got := say(v1alpha1.ConditionRunning); got != tt.running {
				t.Errorf("Running is %s, want %s", got, tt.running)
			}
			if got := say(v1alpha1.ConditionDisksReady); got != tt.disks {
				t.Errorf("DisksReady is %s, want %s", got, tt.disks)
			}
			if s.LastExit == nil != (tt.exit == "") || s.LastExit != nil && s.LastExit.Reason != tt.exit {
				t.Errorf("last exit is %+v, want %q", s.LastExit, tt.exit)
			}
			if s.ReleasedBerth != tt.freed {
				t.Errorf("released %q, want %q", s.ReleasedBerth, tt.freed)
			}
			if wait > 0 != tt.wait {
				t.Errorf("wait is %s, want one: %t", wait, tt.wait)
			}
		})
	}
}

func TestReportKeepsTheTimeOfAnExitThatWasTold(t *testing.T) {
	have := Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Attached: true, Exiting: true}, End: &End{Reason: v1alpha1.ReasonPoweredOff}}
	web := vm(ran)
	first, _ := Report(Want{VM: web, Berth: fresh()}, have, Memory{}, nil, now)
	web.Status = *first
	second, _ := Report(Want{VM: web, Berth: fresh()}, have, Memory{}, nil, now.Add(time.Minute))
	if !second.LastExit.Time.Equal(&first.LastExit.Time) {
		t.Errorf("the exit moved from %s to %s", first.LastExit.Time, second.LastExit.Time)
	}
}
