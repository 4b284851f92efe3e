package plan

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/guest/machine"
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
			Networks:                      []v1alpha1.Network{{Name: "default"}},
			SSHAuthorizedKeys:             []string{"ssh-ed25519 AAAA"},
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

// ignites has a configuration for Ignition, in a Secret if it is nil.
func ignites(config *string) func(*v1alpha1.VirtualMachine) {
	return func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Ignition = &v1alpha1.Ignition{Config: config}
		if config == nil {
			vm.Spec.Ignition.SecretRef = &v1alpha1.SecretKeyReference{Name: "core", Key: "userdata"}
		}
	}
}

func probed(vm *v1alpha1.VirtualMachine) {
	vm.Spec.StartupProbe = &v1alpha1.Probe{Probe: corev1.Probe{PeriodSeconds: 10, FailureThreshold: 6}}
}

func fresh(changes ...func(*Berth)) *Berth {
	b := &Berth{UID: "pod-1", Created: now.Add(-time.Second), NeverStarted: true}
	for _, change := range changes {
		change(b)
	}
	return b
}

func ending(b *Berth)   { b.Terminating = true }
func used(b *Berth)     { b.NeverStarted = false }
func finished(b *Berth) { b.Completed = true }
func old(b *Berth)      { b.Accepted = now.Add(-earlyLimit) }
func drifted(b *Berth) {
	b.Outdated = []v1alpha1.PendingChange{{Path: "cpu.cores", From: "1", To: "2", Effect: v1alpha1.EffectNewBerth}}
}
func altered(b *Berth) { b.Mutation = "container \"spy\" was added" }

// resolved is what is wanted, with its machine.
func resolved(t *testing.T, w Want) Want {
	t.Helper()
	if w.VM == nil {
		return w
	}
	var err error
	w.Machine, err = machine.Of(w.VM, machine.Host{GuestSubnet: netip.MustParsePrefix("10.0.2.0/30")})
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// withoutOperands has steps compared by what follows from them; TestOperands looks at what they act on.
var withoutOperands = cmpopts.IgnoreTypes(machine.Machine{}, machine.Disk{}, []machine.Image{}, []machine.NIC{}, []types.NamespacedName{}, types.UID(""))

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
	"a halted QEMU waits for its container":       {berth: "pod-1", berthSeen: now.Add(-time.Second)},
	"until the time for that is over":             {berth: "pod-1", berthSeen: now.Add(-earlyLimit)},
	"and is not begun again":                      {berth: "pod-1", berthSeen: now.Add(-earlyLimit)},
	"one that never speaks keeps none":            {berth: "pod-1", berthSeen: now.Add(-earlyLimit)},
	"a guest halted by a full disk is given time": {diskError: now.Add(-4 * time.Second)},

	"and resumed":                                {diskError: now.Add(-retryIOAfter)},
	"a panic is seen and cleared away":           {contradictory: now.Add(-contradictionLimit)},
	"one that libvirt forgot is killed":          {contradictory: now.Add(-contradictionLimit)},
	"once libvirt has had no domain of it twice": {contradictory: now.Add(-100 * time.Millisecond)},
}

// TestAPullThatFailsHoldsUpNoOther: what a user has to correct rests for up to an hour, and what may pass does not.
func TestAPullThatFailsHoldsUpNoOther(t *testing.T) {
	failed := func(rest time.Duration) Image {
		return Image{State: ImageFailed, Err: errors.New("no such image"), Retry: now.Add(rest)}
	}
	two := func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Disks = append(vm.Spec.Disks, v1alpha1.Disk{Name: "data", Image: "registry/data:1"})
	}
	for name, tt := range map[string]struct {
		vm         *v1alpha1.VirtualMachine
		root, data Image
		wake       time.Duration
	}{
		"two that failed":            {vm(two), failed(time.Hour), failed(7 * time.Second), 7 * time.Second},
		"one that is on its way":     {vm(two), failed(time.Hour), Image{State: ImagePulling}, pullProgress},
		"one that is there":          {vm(two), failed(time.Hour), Image{State: ImageReady}, time.Hour},
		"a Secret may have changed":  {vm(two, secretive), failed(time.Hour), Image{State: ImageReady}, secretsLook},
		"and is asked again in time": {vm(two, secretive), failed(7 * time.Second), Image{State: ImageReady}, 7 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			have := Have{
				Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{},
				Images: map[string]Image{"root": tt.root, "data": tt.data},
			}
			next, _ := Decide(resolved(t, Want{VM: tt.vm, Berth: fresh()}), have, Memory{}, now)
			if len(next.Steps) > 0 || next.Wake != tt.wake {
				t.Errorf("%+v, want a look after %s", next, tt.wake)
			}
		})
	}
}

// TestWhoWantsImages: a pull that nobody wants is ended.
func TestWhoWantsImages(t *testing.T) {
	for name, tt := range map[string]struct {
		want  Want
		wants int
	}{
		"a VM":                  {Want{VM: vm()}, 1},
		"one that is paused":    {Want{VM: vm(paused)}, 1},
		"one whose berth ends":  {Want{VM: vm(), Berth: fresh(ending)}, 1},
		"one that is to be off": {Want{VM: vm(stopped)}, 0},
		"one that is deleted":   {Want{VM: vm(deleted)}, 0},
		"one that is gone":      {Want{}, 0},
		"one on another node":   {Want{VM: vm(), Elsewhere: true}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			want := resolved(t, tt.want)
			if got := want.Images(); len(got) != tt.wants {
				t.Errorf("%v", got)
			}
		})
	}
}

func TestDecide(t *testing.T) {
	attached := &Shim{Attached: true, Running: true, RunningFor: 20 * time.Second}
	terminating := func(ago time.Duration) *Shim {
		return &Shim{Attached: true, Running: true, Terminating: true, TerminatingFor: ago}
	}
	end := &Exit{Reason: v1alpha1.ReasonPoweredOff}
	begin := []Step{MoveToCgroup{}, ConnectNICs{}, WriteSeed{}, HandOver{}, Resume{}, NotifyShim{}}

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
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerUnknown},
			Next{},
		},
		{
			"without libvirt's word a guest in its time is left alone",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Process: ProcessInContainer, Container: ContainerAlive, Shim: terminating(10 * time.Second)},
			Next{Wake: 20 * time.Second},
		},
		{
			"after it the guest is ended all the same",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Process: ProcessInContainer, Container: ContainerAlive, Shim: terminating(30 * time.Second)},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"so is one in a container that is not the berth's any more",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Process: ProcessInOtherContainer, Container: ContainerDead},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},
		{
			"but whose that is, libvirt alone can say without a berth",
			Want{VM: vm()},
			Have{Process: ProcessInOtherContainer, Container: ContainerAbsent},
			Next{},
		},
		{
			"a start needs all to be known",
			Want{VM: vm(), Berth: fresh()},
			Have{StartUnknown: errors.New("input/output error"), Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			Next{},
		},
		{
			"also the rest of one",
			Want{VM: vm(), Berth: fresh()},
			Have{StartUnknown: errors.New("input/output error"), Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, Shim: &Shim{}},
			Next{},
		},
		{
			"disks that cannot be read may be such as are kept",
			Want{VM: vm(), Elsewhere: true},
			Have{StartUnknown: errors.New("input/output error"), Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true},
			Next{},
		},
		{
			"those of a deleted guest go unread",
			Want{VM: vm(deleted)},
			Have{StartUnknown: errors.New("input/output error"), Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true},
			Next{Steps: []Step{RemoveDisks{}}},
		},
		{
			"nothing starts while the container is unknown",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerUnknown, Images: images(ImageReady)},
			Next{},
		},

		// A start.
		{
			"missing images are pulled at once",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Images: images(ImageMissing)},
			Next{Steps: []Step{PullImages{}}, Wake: pullProgress},
		},
		{
			"images that need a pull secret wait for the container",
			Want{VM: vm(secretive), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Images: images(ImageMissing)},
			Next{},
		},
		{
			"and are pulled then",
			Want{VM: vm(secretive), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageMissing)},
			Next{Steps: []Step{PullImages{}}, Wake: pullProgress},
		},
		{
			"a pull that failed is tried again in its time",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageFailed)},
			Next{Wake: 7 * time.Second},
		},
		{
			"QEMU starts while kubelet makes the container",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Images: images(ImageReady)},
			Next{Steps: []Step{MakeDisk{}, CreateDomain{}}},
		},
		{
			"a halted QEMU waits for its container",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAbsent},
			Next{Wake: earlyLimit - time.Second},
		},
		{
			"until the time for that is over",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAbsent},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"and is not begun again",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Images: images(ImageReady)},
			Next{},
		},
		{
			"nor by the next agent",
			Want{VM: vm(), Berth: fresh(old)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Images: images(ImageReady)},
			Next{},
		},
		{
			"which ends it, too",
			Want{VM: vm(), Berth: fresh(old)},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAbsent},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"QEMU reads Ignition's Secret when it starts, so it waits for the container that has it",
			Want{VM: vm(ignites(nil)), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Images: images(ImageReady)},
			Next{},
		},
		{
			"and starts once it is there",
			Want{VM: vm(ignites(nil)), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			Next{Steps: append([]Step{MakeDisk{}, CreateDomain{}}, begin...)},
		},
		{
			"without a Secret it is begun early",
			Want{VM: vm(ignites(new("{}"))), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Images: images(ImageReady)},
			Next{Steps: []Step{MakeDisk{}, CreateDomain{}}},
		},
		{
			"a shim that comes later gets its guest",
			Want{VM: vm(), Berth: fresh(old)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			Next{Steps: append([]Step{MakeDisk{}, CreateDomain{}}, begin...)},
		},
		{
			"a shim has some time to speak for whom QEMU waits",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, ShimSilent: true},
			Next{Wake: earlyLimit},
		},
		{
			"one that never speaks keeps none",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, ShimSilent: true},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"and not when its spec has changed",
			Want{VM: vm(), Berth: fresh(drifted)},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAbsent},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"with the shim there the guest goes all the way",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, Shim: &Shim{}},
			Next{Steps: begin},
		},
		{
			"a restarted container starts its guest from nothing",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			Next{Steps: append([]Step{MakeDisk{}, CreateDomain{}}, begin...)},
		},
		{
			"a container that ended is not anticipated",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Images: images(ImageReady)},
			Next{},
		},
		{
			"a paused start ends before the first instruction",
			Want{VM: vm(paused), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, Shim: &Shim{}},
			Next{Steps: []Step{MoveToCgroup{}, ConnectNICs{}, WriteSeed{}, HandOver{}, NotifyShim{Paused: true}}},
		},
		{
			"an altered berth gets no guest",
			Want{VM: vm(), Berth: fresh(altered)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			Next{},
		},
		{
			"nor does one whose shim does not take all that it needs",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Lacks: []string{"dhcp"}}, Images: images(ImageReady)},
			Next{},
		},
		{
			"a QEMU that was started early for such a one ends",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, Shim: &Shim{Lacks: []string{"dhcp"}}},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"a guest that runs goes on in it",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true, Lacks: []string{"dhcp"}}},
			Next{},
		},
		{
			"nor does one of another runtime",
			Want{VM: vm(), Berth: fresh()},
			Have{UnsupportedRuntime: "io.containerd.kata.v2", Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Images: images(ImageReady)},
			Next{},
		},
		{
			"and a QEMU that was started early for it ends",
			Want{VM: vm(), Berth: fresh()},
			Have{UnsupportedRuntime: "io.containerd.kata.v2", Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive},
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
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Left: true, Images: images(ImageReady)},
			Next{Steps: []Step{CleanUp{}}},
		},
		{
			"what a guest left that nobody knows any more, too",
			Want{},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Left: true},
			Next{Steps: []Step{CleanUp{}}},
		},
		{
			"nor does one that does not fit the spec any more",
			Want{VM: vm(), Berth: fresh(used, drifted)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			Next{},
		},
		{
			"nor one that the status does not name",
			Want{VM: vm()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{}, Images: images(ImageReady)},
			Next{},
		},
		{
			"nor one that is finished",
			Want{VM: vm(), Berth: fresh(finished, used)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerDead, Images: images(ImageReady)},
			Next{},
		},

		// A guest in its berth.
		{
			"a guest that runs is left alone",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{},
		},
		{
			"even if the API knows nothing of it",
			Want{},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{},
		},
		{
			"even if its spec changed",
			Want{VM: vm(stopped), Berth: fresh(drifted)},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{},
		},
		{
			"the socket of its shim is awaited",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive},
			Next{},
		},
		{
			"a pause is carried out",
			Want{VM: vm(paused), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Pause{}, NotifyShim{Paused: true}}},
		},
		{
			"and ended",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPaused, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Resume{}, NotifyShim{}}},
		},
		{
			"a shim that missed the news is told",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true}},
			Next{Steps: []Step{NotifyShim{}}},
		},
		{
			"and one that was not told of a reset",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true, ResetTold: now.Add(-time.Minute)}, LatestResets: [5]time.Time{now}},
			Next{Steps: []Step{NotifyShim{Reset: now}}},
		},
		{
			"once",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true, ResetTold: now}, LatestResets: [5]time.Time{now}},
			Next{},
		},
		{
			"a guest halted by a full disk is given time",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPausedOnIOError, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Wake: retryIOAfter - 4*time.Second},
		},
		{
			"and resumed",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainPausedOnIOError, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Resume{}}, Wake: retryIOAfter},
		},
		{
			"a startup probe has its time",
			Want{VM: vm(probed), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Wake: 40 * time.Second},
		},
		{
			"and after it the guest is asked to end",
			Want{VM: vm(probed), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true, RunningFor: time.Minute}},
			Next{Steps: []Step{Shutdown{}}, Wake: askAgain},
		},
		{
			"and ended",
			Want{VM: vm(probed), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true, RunningFor: 90 * time.Second}},
			Next{Steps: []Step{Destroy{}}},
		},

		// An end.
		{
			"SIGTERM to the shim asks the guest to power off",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: terminating(0)},
			Next{Steps: []Step{Shutdown{}}, Wake: askAgain},
		},
		{
			"a paused guest is resumed for that",
			Want{VM: vm(paused), Berth: fresh(ending)},
			Have{Domain: DomainPaused, Process: ProcessInContainer, Container: ContainerAlive, Shim: terminating(0)},
			Next{Steps: []Step{Resume{}, Shutdown{}}, Wake: askAgain},
		},
		{
			"the last wait is as long as what is left",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: terminating(28 * time.Second)},
			Next{Steps: []Step{Shutdown{}}, Wake: 2 * time.Second},
		},
		{
			"at the end of its grace period the guest is ended",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: terminating(30 * time.Second)},
			Next{Steps: []Step{Destroy{}, CleanUp{}, EndShim{Exit{
				Reason: v1alpha1.ReasonForcedOff, Code: 137, Message: "the guest did not power off within its grace period and was ended",
			}}}},
		},
		{
			"a guest not started yet is not asked",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainPaused, Process: ProcessUnplaced, Container: ContainerAlive, Shim: &Shim{Terminating: true}},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"a guest that powered off ends its shim",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: attached, Exit: end},
			Next{Steps: []Step{CleanUp{}, EndShim{*end}}},
		},
		{
			"once",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Attached: true, Exiting: true}, Exit: end},
			Next{},
		},
		{
			"one that was ended by us says so",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: terminating(31 * time.Second), Exit: &Exit{Reason: v1alpha1.ReasonDestroyed, Code: 137}},
			Next{Steps: []Step{CleanUp{}, EndShim{Exit{Reason: v1alpha1.ReasonForcedOff, Code: 137}}}},
		},
		{
			"a panic is seen and cleared away",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainCrashed, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"once libvirt has said so twice",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainCrashed, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Wake: contradictionLimit},
		},
		{
			"a shim that ends before its guest came needs no guest",
			Want{VM: vm(), Berth: fresh(ending)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{Terminating: true}},
			Next{Steps: []Step{CleanUp{}, EndShim{Exit{Reason: v1alpha1.ReasonNotRunning}}}},
		},
		{
			"the guest of a dead container is ended",
			Want{VM: vm(), Berth: fresh()},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerDead},
			Next{Steps: []Step{Destroy{}}},
		},
		{
			"so is one in an older container",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessInOtherContainer, Container: ContainerAlive, Shim: &Shim{}},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},
		{
			"one that libvirt forgot is killed",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},
		{
			"once libvirt has had no domain of it twice",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainAbsent, Process: ProcessInContainer, Container: ContainerAlive, Shim: attached},
			Next{Wake: contradictionLimit - 100*time.Millisecond},
		},
		{
			"one whose berth nobody names has libvirt's word looked at twice",
			Want{VM: vm()},
			Have{Domain: DomainAbsent, Process: ProcessInOtherContainer, Container: ContainerAbsent},
			Next{Wake: contradictionLimit},
		},
		{
			"of several none is right",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessMultiple, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},
		{
			"a second domain of our UUID in a used shim is not ours",
			Want{VM: vm(), Berth: fresh(used)},
			Have{Domain: DomainRunning, Process: ProcessUnplaced, Container: ContainerAlive, Shim: attached},
			Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain},
		},

		// A deletion.
		{
			"the disks of a deleted guest go with it",
			Want{VM: vm(deleted), Berth: fresh(ending)},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: terminating(time.Second), Exit: end, Kept: true},
			Next{Steps: []Step{CleanUp{}, EndShim{Exit{Reason: v1alpha1.ReasonShutDown}}, RemoveDisks{}}},
		},
		{
			"not before it is gone",
			Want{VM: vm(deleted), Berth: fresh(ending)},
			Have{Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, Shim: terminating(time.Second), Kept: true},
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
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true, Disks: []machine.Disk{{Name: "root", Ephemeral: true}}},
			Next{Steps: []Step{RemoveDisks{}}},
		},
		{
			"but disks that were to be kept",
			Want{VM: vm(), Elsewhere: true},
			Have{Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAbsent, Kept: true, Disks: []machine.Disk{{Name: "root"}}},
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
			got, _ := Decide(resolved(t, tt.want), tt.have, lasting[tt.name], now)
			if diff := cmp.Diff(tt.next, got, withoutOperands, cmpopts.EquateEmpty(), cmpopts.IgnoreFields(Exit{}, "Message")); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestOperands(t *testing.T) {
	size := resource.MustParse("2Gi")
	w := resolved(t, Want{VM: vm(secretive, func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Kernel = &v1alpha1.Kernel{Image: "registry/kernel:1", KernelPath: "/vmlinuz"}
		vm.Spec.Disks = append(vm.Spec.Disks,
			v1alpha1.Disk{Name: "kept", Image: "registry/data:1"}, v1alpha1.Disk{Name: "scratch", Image: "registry/data:1", Size: &size, Ephemeral: true},
			v1alpha1.Disk{Name: "promoted", Image: "registry/data:1"})
	}), Berth: fresh()})
	h := Have{
		Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{},
		Images: map[string]Image{
			"root": {State: ImageReady, Digest: "sha256:1"}, "kept": {State: ImageReady}, "scratch": {State: ImageReady, Digest: "sha256:2"},
			"promoted": {State: ImageReady, Digest: "sha256:2"}, machine.ForKernel: {State: ImageMissing},
		},
		Disks: []machine.Disk{
			{Name: "kept", Image: machine.Image{Reference: "registry/data:1"}}, {Name: "scratch", Ephemeral: true}, {Name: "promoted", Ephemeral: true},
		},
	}
	kernel := machine.Image{For: machine.ForKernel, Reference: "registry/kernel:1", Kernel: "/vmlinuz"}
	next, _ := Decide(w, h, Memory{}, now)
	pull := []Step{PullImages{[]machine.Image{kernel}, []types.NamespacedName{{Namespace: "default", Name: "pull"}}}}
	if diff := cmp.Diff(pull, next.Steps); diff != "" {
		t.Errorf("with a missing image (-want +got):\n%s", diff)
	}

	h.Images[machine.ForKernel] = Image{State: ImageReady, Digest: "sha256:3"}
	next, _ = Decide(w, h, Memory{}, now)
	kernel.Digest = "sha256:3"
	m := w.Machine
	m.Kernel = &machine.Kernel{Image: kernel}
	disk := func(name, image, digest string) machine.Disk {
		return machine.Disk{Name: name, Image: machine.Image{For: name, Reference: image, Digest: digest}}
	}
	scratch := disk("scratch", "registry/data:1", "sha256:2")
	scratch.Size, scratch.Ephemeral = 2<<30, true
	start := []Step{
		KeepKernel{kernel},
		MakeDisk{Disk: disk("root", "registry/web:1", "sha256:1")},
		MakeDisk{Disk: scratch, Anew: true},
		MakeDisk{Disk: disk("promoted", "registry/data:1", "sha256:2"), Anew: true},
		CreateDomain{m, "pod-1"},
		MoveToCgroup{},
		ConnectNICs{NICs: m.NICs},
		WriteSeed{w.Machine},
		HandOver{w.Machine},
		Resume{},
		NotifyShim{},
	}
	if diff := cmp.Diff(start, next.Steps, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
		t.Errorf("with all images (-want +got):\n%s", diff)
	}
	if w.Machine.Kernel.Image.Digest != "" {
		t.Error("deciding wrote into what is wanted")
	}
}

func TestAFailureTellsWhatQEMUWrote(t *testing.T) {
	h := Have{Domain: DomainAbsent, Process: ProcessNone, Shim: &Shim{Attached: true}, QEMUOutput: "KVM: entry failed"}
	if got := ended(Want{VM: vm(), Berth: fresh()}, h); got.Reason != v1alpha1.ReasonQEMUFailed || !strings.HasSuffix(got.Message, h.QEMUOutput) {
		t.Errorf("it ended with %+v", got)
	}
}

func TestResumeTellsWhoPaused(t *testing.T) {
	h := Have{Domain: DomainPaused, Process: ProcessInContainer, Container: ContainerAlive, Shim: &Shim{Attached: true, Running: true}}
	for _, reported := range []bool{true, false} {
		web := vm()
		if reported {
			ran(web)
		}
		next, _ := Decide(resolved(t, Want{VM: web, Berth: fresh()}), h, Memory{}, now)
		if diff := cmp.Diff([]Step{Resume{PausedExternally: reported}, NotifyShim{}}, next.Steps); diff != "" {
			t.Errorf("reported as running: %t (-want +got):\n%s", reported, diff)
		}
	}
}

func TestShutdownByWhatTheGuestHas(t *testing.T) {
	for _, open := range []bool{true, false} {
		next, _ := Decide(resolved(t, Want{VM: vm(), Berth: fresh(ending)}), Have{
			Domain: DomainRunning, Process: ProcessInContainer, Container: ContainerAlive, AgentChannelOpen: open,
			Shim: &Shim{Attached: true, Running: true, Terminating: true},
		}, Memory{}, now)
		if diff := cmp.Diff([]Step{Shutdown{GuestAgent: open}}, next.Steps); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}
