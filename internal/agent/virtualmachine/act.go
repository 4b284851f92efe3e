package virtualmachine

import (
	"context"
	"errors"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
)

// stepTimeout bounds a step. Starting QEMU is the longest, on a busy host.
const stepTimeout = 2 * time.Minute

// act does steps in order, until one fails. It reads no spec: a step says what it acts on, and o where that is.
func (r *Reconciler) act(ctx context.Context, g *target, o *observed, steps []plan.Step) error {
	log := ctrl.LoggerFrom(ctx)
	for _, step := range steps {
		// gofail: var beforeStep string
		// crashAt(step, beforeStep)
		began := r.Now()
		err := r.do(ctx, g, o, step)
		took := r.Now().Sub(began)
		// gofail: var afterStep string
		// crashAt(step, afterStep)
		r.Metrics.observeStep(step, took, err)
		if err != nil {
			log.V(1).Info("Step failed", "step", plan.Name(step), "err", err.Error())
			return err
		}
		log.V(1).Info("Did step", "step", plan.Name(step), "took", took.String())
	}
	return nil
}

func (r *Reconciler) do(ctx context.Context, g *target, o *observed, step plan.Step) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	uid := string(g.uid)
	switch s := step.(type) {
	case plan.PullImages:
		for _, i := range s.Images {
			r.Host.Images.Start(g.uid, g.Machine.Namespace, i, r.keys(o.session, s.Secrets))
		}
		return nil
	case plan.AttachVolumes:
		return r.attachVolumes(ctx, &g.Machine, o.session, s.Disks)
	case plan.MakeVolumes:
		return r.makeVolumes(&g.Machine, o.session, s.Disks)
	case plan.GrowDisk:
		return r.growDisk(ctx, uid, s)
	case plan.MakeDisk:
		return r.makeDisk(g, s)
	case plan.DeleteDisk:
		return r.Host.Store.RemoveDisk(uid, s.Disk)
	case plan.SetRecord:
		return r.setRecord(ctx, uid, &o.Facts, s.Record)
	case plan.PlugDisk:
		return r.plugDisk(ctx, g, o, s)
	case plan.UnplugDisk:
		return r.Host.Libvirt.DetachDisk(ctx, uid, s.Disk.Alias)
	case plan.TuneDisk:
		return r.Host.Libvirt.SetDiskLimits(ctx, uid, s.Disk.Target, libvirtd.DiskLimits(s.Limits))
	case plan.ChangeMedium:
		return r.changeMedium(ctx, g, s)
	case plan.KeepKernel:
		return r.keepKernel(g, s.Image)
	case plan.CreateDomain:
		return r.createDomain(ctx, o, &s.Machine, s.Berth)
	case plan.MoveToCgroup:
		return r.moveToCgroup(uid, o.session)
	case plan.ConnectNICs:
		return r.connectNICs(ctx, g.uid, o.session, s)
	case plan.WriteSeed:
		return r.writeSeed(&s.Machine, o.session)
	case plan.HandOver:
		return r.handOver(ctx, &s.Machine, &o.Facts, o.session)
	case plan.Resume:
		return r.resume(ctx, g, o, s.PausedExternally)
	case plan.Pause:
		return r.Host.Libvirt.Suspend(ctx, uid)
	case plan.NotifyShim:
		phase := shimproto.PhaseRunning
		if s.Paused {
			phase = shimproto.PhasePaused
		}
		return o.session.Notify(ctx, phase, s.Reset)
	case plan.Reset:
		return r.Host.Libvirt.Reset(ctx, uid)
	case plan.InjectNMI:
		return r.Host.Libvirt.InjectNMI(ctx, uid)
	case plan.ConfirmActions:
		return o.session.Send(ctx, shimproto.Acted{Resets: s.Resets, NMIs: s.NMIs})
	case plan.StartTools:
		go r.startTools(g.uid, o.Facts.AgentPTY) //nolint:contextcheck // it outlives the step, and ends with the agent
		return nil
	case plan.Shutdown:
		return r.shutdown(ctx, g.uid, s.GuestAgent, o.Facts.AgentPTY)
	case plan.Destroy:
		return r.destroy(ctx, uid, o)
	case plan.Kill:
		return r.kill(uid)
	case plan.EndShim:
		return r.endShim(ctx, g, o.session, s.Exit)
	case plan.CleanUp:
		return errors.Join(r.Host.Consoles.Remove(uid), r.Host.Store.RemoveSeed(uid), r.Host.Volumes.Detach(ctx, uid))
	case plan.RemoveDisks:
		return r.removeDisks(ctx, g)
	}
	return fmt.Errorf("unknown step %T", step)
}

// user gives a guest its directory and its user.
func (r *Reconciler) user(m *machine.Machine) (int, error) {
	user, err := r.Host.Store.EnsureGuest(store.Identity{Namespace: m.Namespace, Name: m.Name, UID: string(m.UID)})
	return user, fault.Doing(err, "making the guest's directory")
}

func (r *Reconciler) makeDisk(g *target, s plan.MakeDisk) error {
	user, err := r.user(&g.Machine)
	if err != nil {
		return err
	}
	d := s.Disk
	if d.CDROM {
		return r.Host.Store.SetMedium(string(g.uid), d.Name, d.Image.Reference, contentOf(d.Image))
	}
	make := r.Host.Store.Overlay
	if s.Anew {
		make = r.Host.Store.RecreateOverlay
	}
	_, err = make(string(g.uid), store.Overlay{
		Name: d.Name, Record: store.Record{Image: d.Image.Reference, Ephemeral: d.Ephemeral}, Base: contentOf(d.Image), Size: d.Size, MaxSize: d.MaxSize, User: user,
	})
	return fault.Doing(err, "disk %s", d.Name)
}

func (r *Reconciler) keepKernel(g *target, i machine.Image) error {
	if _, err := r.user(&g.Machine); err != nil {
		return err
	}
	return fault.Doing(r.Host.Store.PinKernel(string(g.uid), contentOf(i)), "keeping the kernel")
}

// removeDisks removes what is kept of the guest, libvirt's logs with it. Of these none keeps a VM from being deleted.
func (r *Reconciler) removeDisks(ctx context.Context, g *target) error {
	if err := r.Host.Libvirt.RemoveLogs(berth.DomainName(g.VM.Namespace, g.VM.Name)); err != nil {
		ctrl.LoggerFrom(ctx).Info("Leaving the domain's logs to the administrator", "err", err.Error())
	}
	return r.Host.Store.Remove(string(g.uid))
}

// resume has the vCPUs run, once it is proven that no other QEMU of this guest lives.
func (r *Reconciler) resume(ctx context.Context, g *target, o *observed, pausedExternally bool) error {
	if err := r.prove(g, o); err != nil {
		return err
	}
	if err := r.Host.Libvirt.Resume(ctx, string(g.uid)); err != nil {
		return err
	}
	if pausedExternally {
		r.Events.Eventf(g.VM, nil, corev1.EventTypeWarning, string(v1alpha1.ReasonPausedExternally), "Resume",
			"The domain was paused outside of Berth and has been resumed: to pause the guest, set spec.state to Paused")
	}
	return nil
}

// prove makes sure that there is exactly one QEMU of the guest, and that it is in the container of a living shim.
func (r *Reconciler) prove(g *target, o *observed) error {
	where, found, err := r.findProcess(string(g.uid), o)
	switch {
	case err != nil:
		return err
	case !o.session.Alive():
		return fault.NewTransient(v1alpha1.ReasonPlacementFailed, fmt.Errorf("refusing to resume the guest: container %s has ended", o.session.ContainerID()))
	case where != plan.ProcessInContainer:
		return fault.NewTransient(v1alpha1.ReasonPlacementFailed, fmt.Errorf(
			"refusing to resume the guest: want one QEMU in container %s of pod %s, found processes %v elsewhere", o.session.ContainerID(), o.berth, pidsOf(found)))
	}
	return nil
}

// shutdown asks by every way there is: a guest listens to one of them, or to none.
func (r *Reconciler) shutdown(ctx context.Context, uid types.UID, guestAgent bool, pts int) error {
	if guestAgent {
		go r.powerDown(uid, pts) //nolint:contextcheck // it outlives the step, and ends with the agent
	}
	return r.Host.Libvirt.Shutdown(ctx, string(uid))
}

// terminationTime is what QEMU may take to end by itself before libvirt ends it: it flushes its disks, no more.
const terminationTime = time.Second

// destroy ends QEMU. It is told directly: libvirt, which tells it the same, looks only every 200 ms whether it has ended,
// and clears up by itself when it has.
func (r *Reconciler) destroy(ctx context.Context, uid string, o *observed) error {
	ended := len(o.qemus) > 0
	for _, q := range o.qemus {
		if err := r.Host.Processes.Terminate(q, terminationTime); err != nil {
			ctrl.LoggerFrom(ctx).V(1).Info("Leaving QEMU's end to libvirt", "pid", q.PID, "err", err.Error())
			ended = false
		}
	}
	if ended {
		return nil
	}
	err := r.Host.Libvirt.Destroy(ctx, uid)
	if err != nil && o.Domain == plan.DomainUnknown && len(o.qemus) > 0 { // libvirtd, which does not answer, would kill it, too
		ctrl.LoggerFrom(ctx).Info("Killing QEMU without libvirt", "err", err.Error())
		return r.kill(uid)
	}
	return err
}

// kill ends every QEMU of the guest that libvirt did not end.
func (r *Reconciler) kill(uid string) error {
	found, err := r.Host.Processes.Find(uid)
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	for _, q := range found {
		if err := r.Host.Processes.Kill(q); err != nil {
			return fmt.Errorf("killing process %d: %w", q.PID, err)
		}
	}
	return nil
}

// endShim has the shim end as the guest did, which is remembered: nobody can find it again once the container is gone.
func (r *Reconciler) endShim(ctx context.Context, g *target, shim Session, exit plan.Exit) error {
	exit.ReportedAt = r.Now()
	r.guests.rememberExit(g.uid, &exit)
	err := shim.Send(ctx, shimproto.Exit{Code: int(exit.Code), Reason: string(exit.Reason), Message: exit.Message})
	if err == nil && exit.Reason != v1alpha1.ReasonNotRunning {
		r.Metrics.Exits.WithLabelValues(string(exit.Reason)).Inc()
	}
	return err
}
