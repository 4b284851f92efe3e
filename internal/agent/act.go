package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/guest/seed"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
)

// stepTimeout bounds a step. Starting QEMU is the longest, on a busy host.
const stepTimeout = 2 * time.Minute

// act does steps in order, until one fails.
func (a *Agent) act(ctx context.Context, g *guest, steps []plan.Step) error {
	log := ctrl.LoggerFrom(ctx)
	for _, step := range steps {
		// gofail: var beforeStep string
		// crashAt(step, beforeStep)
		began := a.now()
		err := a.do(ctx, g, step)
		took := a.now().Sub(began)
		// gofail: var afterStep string
		// crashAt(step, afterStep)
		a.meters.stepped(step, took, err)
		if err != nil {
			log.V(1).Info("Step failed", "step", stepName(step), "cause", err.Error())
			return err
		}
		log.V(1).Info("Did step", "step", stepName(step), "took", took.String())
	}
	return nil
}

func (a *Agent) do(ctx context.Context, g *guest, step plan.Step) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	uid := string(g.uid)
	switch s := step.(type) {
	case plan.Pull:
		for _, i := range requiredImages(g.VM) {
			if slices.Contains(s.Bases, i.Name) {
				a.pulls.Start(g.uid, i, keychain(g))
			}
		}
		return nil
	case plan.MakeDisks:
		return a.makeDisks(g)
	case plan.Create:
		return a.create(ctx, g)
	case plan.Place:
		return a.place(g)
	case plan.Plug:
		return a.plug(ctx, g)
	case plan.Seed:
		return a.writeSeed(g)
	case plan.Attach:
		return a.attach(ctx, g)
	case plan.Resume:
		return a.resume(ctx, g)
	case plan.Suspend:
		return a.libvirt.Suspend(ctx, uid)
	case plan.Tell:
		phase := shimproto.PhaseRunning
		if s.Paused {
			phase = shimproto.PhasePaused
		}
		return g.link.Send(ctx, shimproto.Running{Phase: phase})
	case plan.Shutdown:
		return a.shutdown(ctx, g)
	case plan.Destroy:
		return a.destroy(ctx, g)
	case plan.Kill:
		return a.kill(uid)
	case plan.Exit:
		s.End.Told = a.now()
		a.hints.ended(g.uid, s.End)
		err := g.link.Send(ctx, shimproto.Exit{Code: int(s.End.Code), Reason: string(s.End.Reason), Message: s.End.Message})
		if err == nil && s.End.Reason != v1alpha1.ReasonNotRunning {
			a.meters.exited(s.End.Reason)
		}
		return err
	case plan.Clear:
		return a.clear(uid)
	case plan.RemoveDisks:
		a.pulls.Forget(g.uid)
		return a.store.Remove(uid)
	}
	return fmt.Errorf("unknown step %T", step)
}

// resume has the vCPUs run, once it is proven that no other QEMU of this guest lives.
func (a *Agent) resume(ctx context.Context, g *guest) error {
	if err := a.prove(g); err != nil {
		return err
	}
	if err := a.libvirt.Resume(ctx, string(g.uid)); err != nil {
		return err
	}
	if g.VM != nil && meta.IsStatusConditionTrue(g.VM.Status.Conditions, v1alpha1.ConditionRunning) {
		a.events.Eventf(g.VM, nil, corev1.EventTypeWarning, string(v1alpha1.ReasonSuspended), "Resume",
			"The domain was paused outside of Berth and has been resumed: to pause the guest, set spec.state to Paused")
	}
	return nil
}

// create has libvirt start QEMU, its vCPUs halted, once it is proven that there is none.
func (a *Agent) create(ctx context.Context, g *guest) error {
	uid := string(g.uid)
	found, err := process.Find(uid)
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	if len(found) > 0 {
		return fault.ByTime(v1alpha1.ReasonStarting, fmt.Errorf("process %d of this guest is still there", found[0].PID))
	}
	user, err := a.claim(g)
	if err != nil {
		return fmt.Errorf("making the guest's directory: %w", err)
	}
	machine, err := a.machine(g, user) //nolint:contextcheck // libvirt may be asked in the background, which ends with the agent
	if err != nil {
		return err
	}
	if needsSeed(g.VM) {
		if machine.Seed, err = a.store.CreateSeed(uid, seed.Size, user); err != nil {
			return fmt.Errorf("making the seed: %w", err)
		}
	}
	doc, err := domain.XML(machine)
	if err != nil {
		return fmt.Errorf("describing the domain: %w", err)
	}
	a.hints.begin(g.uid)
	return a.libvirt.CreatePaused(ctx, doc)
}

// place moves QEMU and what works for it into the container's cgroup.
func (a *Agent) place(g *guest) error {
	found, err := process.Find(string(g.uid))
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	for _, q := range found {
		helpers, err := process.Helpers(q.PID)
		if err != nil {
			return fmt.Errorf("looking for QEMU's helpers: %w", err)
		}
		if err := a.cgroups.Place(g.link.Cgroup(), append([]int{q.PID}, helpers...)...); err != nil {
			return fault.ByTime(v1alpha1.ReasonPlacementFailed, fmt.Errorf("placing QEMU into its berth: %w", err))
		}
		if err := a.setOOMScore(g, q.PID); err != nil {
			return fmt.Errorf("setting QEMU's oom_score_adj: %w", err)
		}
	}
	return nil
}

// prove makes sure that there is exactly one QEMU of the guest, and that it is in the container of a living shim.
func (a *Agent) prove(g *guest) error {
	var h plan.Have
	if err := observeProcess(g, &h); err != nil {
		return err
	}
	switch {
	case !g.link.Alive():
		return fault.ByTime(v1alpha1.ReasonPlacementFailed, fmt.Errorf("refusing to resume the guest: container %s has ended", g.link.ContainerID()))
	case h.Process != plan.ProcessPlaced:
		return fault.ByTime(v1alpha1.ReasonPlacementFailed, fmt.Errorf(
			"refusing to resume the guest: want one QEMU in container %s of pod %s, found processes %v elsewhere", g.link.ContainerID(), g.berthUID, pidsOf(g.qemu)))
	}
	return nil
}

// shutdown asks by every way there is: a guest listens to one of them, or to none. An agent that is ending, since the
// guest does, refuses: that is no failure.
func (a *Agent) shutdown(ctx context.Context, g *guest) error {
	err := a.libvirt.Shutdown(ctx, string(g.uid), libvirtd.ByACPI)
	if !g.agentConnected {
		return err
	}
	agentErr := a.libvirt.Shutdown(ctx, string(g.uid), libvirtd.ByGuestAgent)
	if err != nil && agentErr != nil {
		return errors.Join(err, agentErr)
	}
	return nil
}

// terminationTime is what QEMU may take to end by itself before libvirt ends it: it flushes its disks, no more.
const terminationTime = time.Second

// destroy ends QEMU. It is told directly: libvirt, which tells it the same, looks only every 200 ms whether it has ended,
// and clears up by itself when it has.
func (a *Agent) destroy(ctx context.Context, g *guest) error {
	ended := len(g.qemu) > 0
	for _, q := range g.qemu {
		if err := q.Terminate(terminationTime); err != nil {
			ctrl.LoggerFrom(ctx).V(1).Info("Leaving QEMU's end to libvirt", "pid", q.PID, "cause", err.Error())
			ended = false
		}
	}
	if ended {
		return nil
	}
	return a.libvirt.Destroy(ctx, string(g.uid))
}

// kill ends every QEMU of the guest that libvirt did not end.
func (a *Agent) kill(uid string) error {
	found, err := process.Find(uid)
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	for _, q := range found {
		if err := q.Kill(); err != nil {
			return fmt.Errorf("killing process %d: %w", q.PID, err)
		}
	}
	return nil
}

// clear removes what a run of the guest left; its disks stay.
func (a *Agent) clear(uid string) error {
	if err := os.Remove(a.consolePath(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the console's socket: %w", err)
	}
	return a.store.RemoveSeed(uid)
}
