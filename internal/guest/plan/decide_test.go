package plan

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// vm is a VirtualMachine that runs, with changes.
func vm(changes ...func(*v1alpha1.VirtualMachine)) *v1alpha1.VirtualMachine {
	grace := int64(30)
	vm := &v1alpha1.VirtualMachine{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "web", UID: "8f9c1d2e-0000-4000-8000-000000000001", Generation: 1},
		Spec: v1alpha1.VirtualMachineSpec{
			State: v1alpha1.StateRunning, RestartPolicy: v1alpha1.RestartAlways,
			TerminationGracePeriodSeconds: &grace,
			Memory:                        v1alpha1.Memory{Size: resource.MustParse("1Gi")},
			Disks:                         []v1alpha1.Disk{{Name: "root", Image: "registry/web:1"}},
		},
	}
	for _, change := range changes {
		change(vm)
	}
	return vm
}

func paused(vm *v1alpha1.VirtualMachine)  { vm.Spec.State = v1alpha1.StatePaused }
func stopped(vm *v1alpha1.VirtualMachine) { vm.Spec.State = v1alpha1.StateStopped }
func deleted(vm *v1alpha1.VirtualMachine) { vm.DeletionTimestamp = &metav1.Time{Time: now} }
func secretive(vm *v1alpha1.VirtualMachine) {
	vm.Spec.ImagePullSecrets = []v1alpha1.LocalReference{{Name: "pull"}}
}

func probed(vm *v1alpha1.VirtualMachine) {
	vm.Spec.StartupProbe = &v1alpha1.Probe{Probe: corev1.Probe{PeriodSeconds: 10, FailureThreshold: 6}}
}

func fresh(changes ...func(*Berth)) *Berth {
	b := &Berth{UID: "pod-1", Created: now.Add(-time.Second), Fresh: true}
	for _, change := range changes {
		change(b)
	}
	return b
}

func ending(b *Berth)   { b.Ending = true }
func used(b *Berth)     { b.Fresh = false }
func finished(b *Berth) { b.Finished = true }
func old(b *Berth)      { b.Created = now.Add(-unplacedLimit) }
func drifted(b *Berth) {
	b.Outdated = []v1alpha1.PendingChange{{Path: "cpu.cores", From: "1", To: "2", Effect: v1alpha1.EffectNewBerth}}
}
func virtual(b *Berth) { b.Runtime = "io.containerd.kata.v2" }
func altered(b *Berth) { b.Altered = "container \"spy\" was added" }

func images(state ImageState) map[string]Image {
	if state != ImageFailed {
		return map[string]Image{"root": {State: state}}
	}
	return map[string]Image{"root": {State: state, Err: errors.New("no such image"), Retry: now.Add(7 * time.Second)}}
}

// lasting are the memories of cases in which a state has lasted, by their names.
var lasting = map[string]Memory{
	"a QEMU that ended is libvirt's to tell of":   {processGone: now.Add(-time.Second)},
	"but not for ever":                            {processGone: now.Add(-processGoneLimit)},
	"a guest halted by a full disk is given time": {diskError: now.Add(-4 * time.Second)},

	"and resumed":                                {diskError: now.Add(-unblockAfter)},
	"a panic is seen and cleared away":           {contradictory: now.Add(-contradictionLimit)},
	"one that libvirt forgot is killed":          {contradictory: now.Add(-contradictionLimit)},
	"once libvirt has had no domain of it twice": {contradictory: now.Add(-100 * time.Millisecond)},
}

func TestDecide(t *testing.T) {
	attached := &Shim{Attached: true, Running: true, RunningFor: 20 * time.Second}
	terminating := func(ago time.Duration) *Shim {
		return &Shim{Attached: true, Running: true, Terminating: true, TerminatingFor: ago}
	}
	end := &End{Reason: v1alpha1.ReasonPoweredOff}
	begin := []Step{Place{}, Plug{}, Seed{}, Attach{}, Resume{}, Tell{}}

	tests := []struct {
		name string
		want Want
		have Have
		next Next
	}{
		// What is not known.
		{
			"nothing follows from an unknown domain",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainUnknown, Process: ProcessNone, Container: ContainerAlive},
			Next{},
		},
		{
			"nothing follows from unknown processes",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessUnknown, Container: ContainerAlive, Shim: &Shim{}},
			Next{},
		},
		{
			"a guest whose container is unknown is left alone",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerUnknown},
			Next{},
		},
		{
			"nothing starts while the container is unknown",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerUnknown, Base: images(ImageReady)},
			Next{},
		},

		// A start.
		{
			"missing images are pulled at once",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Base: images(ImageMissing)},
			Next{Steps: []Step{Pull{[]string{"root"}}}, Wake: pullProgress},
		},
		{
			"images that need a pull secret wait for the container",
			Want{VM: vm(secretive), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Base: images(ImageMissing)},
			Next{},
		},
		{
			"and are pulled then",
			Want{VM: vm(secretive), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImageMissing)},
			Next{Steps: []Step{Pull{[]string{"root"}}}, Wake: pullProgress},
		},
		{
			"a pull that failed is tried again in its time",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImageFailed)},
			Next{Wake: 7 * time.Second},
		},
		{
			"QEMU starts while kubelet makes the container",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Base: images(ImageReady)},
			Next{Steps: []Step{MakeDisks{}, Create{}}},
		},
		{
			"a halted QEMU waits for its container",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAbsent},
			Next{Wake: unplacedLimit - time.Second},
		},
		{
			"but not for ever",
			Want{VM: vm(), Berth: fresh(old)},
			Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAbsent},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"and not when its spec has changed",
			Want{VM: vm(), Berth: fresh(drifted)},
			Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAbsent},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"with the shim there the guest goes all the way",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAlive, Shim: &Shim{}},
			Next{Steps: begin},
		},
		{
			"a restarted container starts its guest from nothing",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImageReady)},
			Next{Steps: append([]Step{MakeDisks{}, Create{}}, begin...)},
		},
		{
			"a container that ended is not anticipated",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Base: images(ImageReady)},
			Next{},
		},
		{
			"a paused start ends before the first instruction",
			Want{VM: vm(paused), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAlive, Shim: &Shim{}},
			Next{Steps: []Step{Place{}, Plug{}, Seed{}, Attach{}, Tell{Paused: true}}},
		},
		{
			"an altered berth gets no guest",
			Want{VM: vm(), Berth: fresh(altered)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImageReady)},
			Next{},
		},
		{
			"nor does one of another runtime",
			Want{VM: vm(), Berth: fresh(virtual)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Base: images(ImageReady)},
			Next{},
		},
		{
			"and a QEMU that was started early for it ends",
			Want{VM: vm(), Berth: fresh(virtual)},
			Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAlive},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"a QEMU that ended is libvirt's to tell of",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessNone, Container: ContainerAlive, Shim: attached},
			Next{Wake: processGoneLook},
		},
		{
			"but not for ever",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessNone, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"what a killed container's guest left is cleared away",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Left: true, Base: images(ImageReady)},
			Next{Steps: []Step{Clear{}}},
		},
		{
			"what a guest left that nobody knows any more, too",
			Want{},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Left: true},
			Next{Steps: []Step{Clear{}}},
		},
		{
			"nor does one that does not fit the spec any more",
			Want{VM: vm(), Berth: fresh(used, drifted)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImageReady)},
			Next{},
		},
		{
			"nor one that the status does not name",
			Want{VM: vm()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Base: images(ImageReady)},
			Next{},
		},
		{
			"nor one that is finished",
			Want{VM: vm(), Berth: fresh(finished, used)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Base: images(ImageReady)},
			Next{},
		},

		// A guest in its berth.
		{
			"a guest that runs is left alone",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{},
		},
		{
			"even if the API knows nothing of it",
			Want{},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{},
		},
		{
			"even if its spec changed",
			Want{VM: vm(stopped), Berth: fresh(drifted)},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{},
		},
		{
			"the socket of its shim is awaited",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive},
			Next{},
		},
		{
			"a pause is carried out",
			Want{VM: vm(paused), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Suspend{}, Tell{Paused: true}}},
		},
		{
			"and ended",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Resume{}, Tell{}}},
		},
		{
			"a shim that missed the news is told",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: &Shim{Attached: true}},
			Next{Steps: []Step{Tell{}}},
		},
		{
			"a guest halted by a full disk is given time",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainBlocked, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Wake: unblockAfter - 4*time.Second},
		},
		{
			"and resumed",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainBlocked, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Resume{}}, Wake: unblockAfter},
		},
		{
			"a startup probe has its time",
			Want{VM: vm(probed), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Wake: 40 * time.Second},
		},
		{
			"and after it the guest is asked to end",
			Want{VM: vm(probed), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true, RunningFor: time.Minute}},
			Next{Steps: []Step{Shutdown{}}, Wake: askAgain},
		},
		{
			"and ended",
			Want{VM: vm(probed), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true, RunningFor: 90 * time.Second}},
			Next{Steps: []Step{Destroy{}}},
		},

		// An end.
		{
			"SIGTERM to the shim asks the guest to power off",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: terminating(0)},
			Next{Steps: []Step{Shutdown{}}, Wake: askAgain},
		},
		{
			"a paused guest is resumed for that",
			Want{VM: vm(paused), Berth: fresh(ending)},
			Have{Domain: DomainPaused, Process: ProcessPlaced, Container: ContainerAlive, Shim: terminating(0)},
			Next{Steps: []Step{Resume{}, Shutdown{}}, Wake: askAgain},
		},
		{
			"the last wait is as long as what is left",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: terminating(28 * time.Second)},
			Next{Steps: []Step{Shutdown{}}, Wake: 2 * time.Second},
		},
		{
			"at the end of its grace period the guest is ended",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: terminating(30 * time.Second)},
			Next{Steps: []Step{Destroy{}, Clear{}, Exit{End: End{
				Reason: v1alpha1.ReasonForcedOff, Code: 137, Message: "the guest did not power off within its grace period and was ended",
			}}}},
		},
		{
			"a guest not started yet is not asked",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainPaused, Process: ProcessLoose, Container: ContainerAlive, Shim: &Shim{Terminating: true}},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"a guest that powered off ends its shim",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: attached, End: end},
			Next{Steps: []Step{Clear{}, Exit{*end}}},
		},
		{
			"once",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Attached: true, Exiting: true}, End: end},
			Next{},
		},
		{
			"one that was ended by us says so",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: terminating(31 * time.Second), End: &End{Reason: v1alpha1.ReasonDestroyed, Code: 137}},
			Next{Steps: []Step{Clear{}, Exit{End{Reason: v1alpha1.ReasonForcedOff, Code: 137}}}},
		},
		{
			"a panic is seen and cleared away",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainCrashed, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"once libvirt has said so twice",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainCrashed, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Wake: contradictionLimit},
		},
		{
			"a shim that ends before its guest came needs no guest",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Terminating: true}},
			Next{Steps: []Step{Clear{}, Exit{End{Reason: v1alpha1.ReasonNotRunning}}}},
		},
		{
			"the guest of a dead container is ended",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerDead},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"so is one in an older container",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessElsewhere, Container: ContainerAlive, Shim: &Shim{}},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},
		{
			"one that libvirt forgot is killed",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},
		{
			"once libvirt has had no domain of it twice",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessPlaced, Container: ContainerAlive, Shim: attached},
			Next{Wake: contradictionLimit - 100*time.Millisecond},
		},
		{
			"of several none is right",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessSeveral, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},
		{
			"a second domain of our UUID in a used shim is not ours",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessLoose, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},

		// A deletion.
		{
			"the disks of a deleted guest go with it",
			Want{VM: vm(deleted), Berth: fresh(ending)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: terminating(time.Second), End: end, Kept: true},
			Next{Steps: []Step{Clear{}, Exit{*end}, RemoveDisks{}}},
		},
		{
			"not before it is gone",
			Want{VM: vm(deleted), Berth: fresh(ending)},
			Have{Domain: DomainRunning, Process: ProcessPlaced, Container: ContainerAlive, Shim: terminating(time.Second), Kept: true},
			Next{Steps: []Step{Shutdown{}}, Wake: askAgain},
		},
		{
			"also of one that was stopped long ago",
			Want{VM: vm(deleted)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true},
			Next{Steps: []Step{RemoveDisks{}}},
		},
		{
			"a guest that moved away leaves nothing behind",
			Want{VM: vm(), Elsewhere: true},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true, Disks: []v1alpha1.DiskStatus{{Name: "root", Ephemeral: true}}},
			Next{Steps: []Step{RemoveDisks{}}},
		},
		{
			"but disks that were to be kept",
			Want{VM: vm(), Elsewhere: true},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true, Disks: []v1alpha1.DiskStatus{{Name: "root"}}},
			Next{},
		},
		{
			"but the disks of a guest that nobody knows stay",
			Want{},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true},
			Next{},
		},
		{
			"and those of one that is stopped",
			Want{VM: vm(stopped)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true},
			Next{},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := Decide(tt.want, tt.have, lasting[tt.name], now)
			if diff := cmp.Diff(tt.next, got, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(End{}, "Message")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}
