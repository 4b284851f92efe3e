package plan

import (
	"errors"
	"flag"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// world is a host with one guest, simulated. It is as hostile as hosts are: libvirt forgets and notices late, no
// runtime ends a QEMU with its container, and every plan may be cut short after any step.
type world struct {
	now       time.Time
	vm        *v1alpha1.VirtualMachine
	berth     *Berth
	container int // counts the berth's containers; 0 before the first
	alive     bool
	shim      *Shim
	silent    bool // the agent is new, and the shim has not spoken to it yet
	domain    Domain
	qemus     []int  // the container that each is in, 0 outside of all
	memory    Memory // the agent's
	left      bool
	kept      bool
	end       *End
	never     bool // kubelet restarts nothing
	mortal    bool // the VM, or its berth, may be deleted: else all that follows would be lost on a deleted one
}

var errModel = errors.New("the step failed")

func newWorld() *world {
	return &world{now: now, vm: vm(), berth: &Berth{UID: "pod", Created: now, Fresh: true}, domain: DomainAbsent}
}

func (w *world) want() Want {
	want := Want{VM: w.vm}
	if w.berth != nil {
		b := *w.berth
		want.Berth = &b
	}
	return want
}

func (w *world) have() Have {
	h := Have{Domain: w.domain, Process: ProcessNone, Container: ContainerAbsent, Base: images(ImageReady), Kept: w.kept, Left: w.left}
	switch {
	case len(w.qemus) > 1:
		h.Process = ProcessSeveral
	case len(w.qemus) == 1 && w.qemus[0] == 0:
		h.Process = ProcessLoose
	case len(w.qemus) == 1 && w.qemus[0] == w.container && w.alive:
		h.Process = ProcessPlaced
	case len(w.qemus) == 1:
		h.Process = ProcessElsewhere
	}
	if w.berth != nil && w.container > 0 {
		h.Container = ContainerDead
	}
	if w.berth != nil && w.alive {
		h.Container, h.ShimSilent = ContainerAlive, w.silent
		if !w.silent {
			shim := *w.shim
			h.Shim = &shim
		}
	}
	if h.Domain == DomainAbsent && h.Process == ProcessNone {
		h.End = w.end
	}
	return h
}

// sync is one look of an agent that is killed after cut steps.
func (w *world) sync(t *rapid.T, cut int) {
	for range 4 {
		var next Next
		next, w.memory = Decide(w.want(), w.have(), w.memory, w.now)
		if len(next.Steps) == 0 {
			return
		}
		for _, step := range next.Steps {
			if cut--; cut < 0 {
				w.silent, w.memory = true, Memory{}
				return
			}
			if err := w.do(t, step); err != nil {
				return
			}
		}
		if next.Wake > 0 {
			return
		}
	}
}

func (w *world) do(t *rapid.T, step Step) error {
	switch step.(type) {
	case MakeDisks:
		w.kept = true
	case Create:
		if len(w.qemus) > 0 {
			return errModel // the agent looks into /proc first
		}
		if w.alive && w.shim.Attached {
			t.Fatal("a container that has had its guest got another")
		}
		w.qemus, w.domain, w.left, w.end = []int{0}, DomainPaused, true, nil
	case Place:
		if !w.alive {
			return errModel
		}
		for i, in := range w.qemus {
			if in != 0 && in != w.container {
				t.Fatal("a guest was moved from one container to another")
			}
			w.qemus[i] = w.container
		}
	case Attach:
		if !w.alive {
			return errModel
		}
		if w.shim.Attached {
			t.Fatal("a shim got a second guest")
		}
		w.shim.Attached = true
	case Tell:
		if !w.alive {
			return errModel
		}
		w.shim.Running = true
	case Exit:
		if w.alive {
			w.endContainer()
		}
	case Resume:
		if len(w.qemus) != 1 || w.qemus[0] != w.container || !w.alive || w.domain == DomainAbsent {
			return errModel // the agent proves it first
		}
		w.domain = DomainRunning
	case Suspend:
		w.domain = DomainPaused
	case Shutdown:
		if w.domain == DomainRunning && rapid.Bool().Draw(t, "guest obeys") {
			w.powerOff()
		}
	case Destroy:
		if w.domain == DomainAbsent {
			return nil
		}
		if len(w.qemus) == 0 || rapid.Bool().Draw(t, "libvirt notices at once") {
			w.domain = DomainAbsent
		}
		w.qemus, w.end = nil, &End{Reason: v1alpha1.ReasonDestroyed, Code: 137}
	case Kill:
		w.qemus = nil
	case Clear:
		if len(w.qemus) > 0 {
			t.Fatal("what a living QEMU uses was cleared away")
		}
		w.left = false
	case RemoveDisks:
		if len(w.qemus) > 0 {
			t.Fatal("the disks of a living QEMU were removed")
		}
		w.kept = false
	case Pull, Plug, Seed:
	}
	return nil
}

func (w *world) powerOff() {
	w.domain, w.qemus, w.end = DomainAbsent, nil, &End{Reason: v1alpha1.ReasonPoweredOff}
}

// endContainer ends the container and leaves whatever else lives in it.
func (w *world) endContainer() {
	w.alive, w.shim, w.silent, w.berth.Fresh = false, nil, false, false
}

// startContainer is kubelet's part.
func (w *world) startContainer() {
	if w.berth != nil && !w.berth.Ending && !w.alive && (w.container == 0 || !w.never) {
		w.container++
		w.alive, w.shim, w.berth.Fresh = true, &Shim{}, w.container == 1
	}
}

// replaceBerth is the operator's part: a berth that has ended, and of which nothing is left, makes way for the next.
func (w *world) replaceBerth() {
	if w.berth == nil || !w.berth.Ending || w.alive || len(w.qemus) > 0 {
		return
	}
	w.berth, w.container = nil, 0
	if w.vm.DeletionTimestamp.IsZero() {
		w.berth = &Berth{UID: "pod", Created: w.now, Fresh: true}
	}
}

// terminate is kubelet's part in the end of a berth: it asks the shim.
func (w *world) terminate() {
	if w.alive {
		w.shim.Terminating = true
	}
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.now = w.now.Add(d)
	if w.alive && w.shim.Terminating {
		w.shim.TerminatingFor += d
	}
}

// answerWrong has libvirt say once of a guest that runs what ends others.
func (w *world) answerWrong(t *rapid.T) {
	_, memory := Decide(w.want(), w.have(), w.memory, w.now) // the look before told the truth
	ends := func(h Have) bool {
		next, _ := Decide(w.want(), h, memory, w.now)
		return slices.ContainsFunc(next.Steps, func(s Step) bool { return s == Destroy{} || s == Kill{} })
	}
	right := w.have()
	wrong := right
	wrong.Domain = rapid.SampledFrom([]Domain{DomainAbsent, DomainCrashed}).Draw(t, "wrong answer")
	if ends(wrong) && !ends(right) {
		t.Fatal("a guest was ended because of one wrong answer")
	}
}

// check is what must hold at any moment.
func (w *world) check(t *rapid.T) {
	if len(w.qemus) > 1 {
		t.Fatalf("there are %d QEMUs", len(w.qemus))
	}
}

// settle lets everybody do their work, undisturbed.
func (w *world) settle(t *rapid.T) {
	for range 40 {
		w.silent = false
		w.sync(t, 1000)
		w.check(t)
		if w.berth != nil && (w.berth.Ending || len(w.berth.Outdated) > 0) {
			w.berth.Ending = true
			w.terminate()
		}
		w.startContainer()
		w.replaceBerth()
		w.pass(15 * time.Second)
	}
}

// schedules is how many are tried, unless -rapid.checks says otherwise.
const schedules = "20000"

func TestModel(t *testing.T) {
	if f := flag.Lookup("rapid.checks"); f.Value.String() == f.DefValue {
		if err := f.Value.Set(schedules); err != nil {
			t.Fatal(err)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		w := newWorld()
		w.never, w.mortal = rapid.Bool().Draw(t, "never restarted"), rapid.Bool().Draw(t, "mortal")
		t.Repeat(map[string]func(*rapid.T){
			"":                w.check,
			"agent looks":     func(t *rapid.T) { w.sync(t, 1000) },
			"agent dies amid": func(t *rapid.T) { w.sync(t, rapid.IntRange(0, 9).Draw(t, "steps")) },
			"time passes":     func(t *rapid.T) { w.pass(time.Duration(rapid.IntRange(1, 70).Draw(t, "seconds")) * time.Second) },
			"the clock jumps": func(t *rapid.T) {
				w.now = w.now.AddDate(0, 0, rapid.SampledFrom([]int{-1, 1}).Draw(t, "days"))
			},
			"shim speaks":         func(t *rapid.T) { w.when(t, w.silent, func() { w.silent = false }) },
			"container starts":    func(*rapid.T) { w.startContainer() },
			"berth ends":          func(t *rapid.T) { w.when(t, w.mortal && w.berth != nil, w.endBerth) },
			"berth is replaced":   func(*rapid.T) { w.replaceBerth() },
			"shim is asked":       func(*rapid.T) { w.terminate() },
			"shim is killed":      func(t *rapid.T) { w.when(t, w.alive, w.endContainer) },
			"guest powers off":    func(t *rapid.T) { w.when(t, w.domain == DomainRunning && len(w.qemus) == 1, w.powerOff) },
			"guest panics":        func(t *rapid.T) { w.when(t, w.domain == DomainRunning, func() { w.domain = DomainCrashed }) },
			"QEMU is killed":      func(*rapid.T) { w.qemus = nil },
			"libvirt notices":     func(t *rapid.T) { w.when(t, len(w.qemus) == 0, func() { w.domain = DomainAbsent }) },
			"libvirt forgets":     func(*rapid.T) { w.domain = DomainAbsent },
			"libvirt is wrong":    func(t *rapid.T) { w.when(t, w.domain == DomainRunning, func() { w.answerWrong(t) }) },
			"spec changes":        func(t *rapid.T) { w.when(t, w.mortal && w.berth != nil, func() { drifted(w.berth) }) },
			"the VM is deleted":   func(t *rapid.T) { w.when(t, w.mortal, func() { deleted(w.vm); w.endBerth() }) },
			"and is to be paused": func(*rapid.T) { paused(w.vm) },
			"and to run again":    func(*rapid.T) { w.vm.Spec.State = v1alpha1.StateRunning },
		})
		w.settle(t)
		gone := len(w.qemus) == 0 && w.domain == DomainAbsent
		if !w.vm.DeletionTimestamp.IsZero() {
			if !gone || w.kept || w.left || w.berth != nil {
				t.Fatalf("a deleted guest left something: %+v", w)
			}
			return
		}
		if w.never && !w.alive {
			if !gone || w.left {
				t.Fatalf("a guest outlived its container, or left something: %+v", w)
			}
			return
		}
		should := DomainRunning
		if w.vm.Spec.State == v1alpha1.StatePaused {
			should = DomainPaused
		}
		if w.domain != should || len(w.qemus) != 1 || !w.alive || w.qemus[0] != w.container || !w.shim.Running {
			t.Fatalf("a wanted guest does not run: %+v, its shim %+v, its berth %+v", w, w.shim, w.berth)
		}
	})
}

// endBerth begins the end of a berth.
func (w *world) endBerth() {
	if w.berth != nil {
		w.berth.Ending = true
		w.terminate()
	}
}

// when does something that can only happen now.
func (w *world) when(t *rapid.T, can bool, do func()) {
	if !can {
		t.Skip()
	}
	do()
}
