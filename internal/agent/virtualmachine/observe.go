package virtualmachine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/internal/host/store"
)

// observed is what one look at the host found of a guest.
type observed struct {
	plan.Have
	// berth is the pod whose container counts: the wanted berth, or else the one that the domain was made for.
	berth types.UID
	// session is nil while there is none; sessionErr says why.
	session    Session
	sessionErr error
	qemus      []process.Process
	// fingerprint is as the function of that name has it.
	fingerprint string
	// askAgentIn is when its guest agent, which has connected once more, is to be asked; 0 if there is nothing to wait for.
	askAgentIn time.Duration
}

// observe reads all that the host has of a guest. It cannot fail: what cannot be read is unknown, and hides nothing else.
func (r *Reconciler) observe(ctx context.Context, g *target) (o observed) {
	o.Facts.AgentPTY = -1
	if g.Berth != nil {
		o.berth = g.Berth.UID
	}
	found, err := r.observeDomain(ctx, g, &o)
	o.Unknown = err
	if fault.ReasonOf(err) == v1alpha1.ReasonDomainNameTaken {
		return o // its QEMU is not ours either
	}
	r.observeGuestAgent(g, &o) //nolint:contextcheck // what it begins outlives the sync, and ends with the agent

	r.observeContainer(ctx, g, &o)
	if o.Process, o.qemus, err = r.findProcess(string(g.uid), &o); err != nil && o.Unknown == nil {
		o.Unknown = err
	}
	if o.Container == plan.ContainerUnknown && o.Unknown == nil {
		o.Unknown = fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, o.sessionErr)
	}
	r.watchQEMUs(g.uid, o.qemus)
	o.fingerprint = fingerprint(found, pidsOf(o.qemus))
	o.StartUnknown = r.observeStart(g, &o)
	if g.VM != nil && o.Domain == plan.DomainAbsent && o.Process == plan.ProcessNone {
		o.Exit = r.exit(g, &o)
	}
	return o
}

// observeDomain reads what libvirt has of a guest. A domain that is not Berth's counts as unknown.
func (r *Reconciler) observeDomain(ctx context.Context, g *target, o *observed) (found libvirtd.Domain, err error) {
	if found, err = r.Host.Libvirt.Domain(ctx, string(g.uid)); err != nil {
		return found, err
	}
	if found.Exists {
		facts, err := domain.ParseFacts(found.XML)
		if err != nil {
			return found, fmt.Errorf("reading domain %s: %w", found.Name, err)
		}
		if facts.Identity == nil || facts.Identity.VM != string(g.uid) {
			return found, fault.NewUser(v1alpha1.ReasonDomainNameTaken, fmt.Errorf(
				"domain %s on node %s has this guest's UUID and is not Berth's: undefine or destroy it with virsh", found.Name, r.Node))
		}
		o.Facts, o.AgentChannelOpen = facts, facts.AgentConnected
		o.berth = cmp.Or(o.berth, types.UID(facts.Identity.Berth))
	}
	o.Domain = domainState(found)
	o.Resets, o.LatestResets = found.Resets.Count, found.Resets.Latest
	return found, nil
}

// observeStart reads what a start rests on, besides domain, process and container, up to the first thing that cannot be
// read, which it returns. Kept and Left are false when they are unknown: then nothing is removed.
func (r *Reconciler) observeStart(g *target, o *observed) (err error) {
	uid := string(g.uid)
	seed, seedErr := r.Host.Store.HasSeed(uid)
	o.Left = seed || r.Host.Consoles.Exists(uid)
	if o.Volumes, err = r.Host.Volumes.State(g.uid); err != nil {
		return errors.Join(err, seedErr)
	}
	o.Kept, err = r.Host.Store.Has(uid)
	if err = errors.Join(err, seedErr); err != nil || g.VM == nil {
		return err
	}
	if o.Pending, err = g.pending(&o.Facts); err != nil {
		return err
	}
	if s := g.Machine.Seed; s != nil && s.Implied {
		if o.RanWithoutSeed, err = r.Host.Store.RanWithoutSeed(uid); err != nil {
			return err
		}
	}
	if c, _ := r.commits.Load(g.uid); c != nil && c.(*commit).reading.Load() { //nolint:forcetypeassert // nothing else is in there
		return fault.NewTransient(v1alpha1.ReasonCommitting, errors.New("a disk is copied for a VirtualMachineCommit: the guest can start once it is"))
	}
	return r.observeDisks(g, o)
}

// pending are the changes of the spec since the guest was started. Its domain tells with what.
func (g *target) pending(facts *domain.Facts) ([]v1alpha1.PendingChange, error) {
	if g.VM == nil || facts.Identity == nil {
		return nil, nil
	}
	return berth.Changes(facts.Identity.Record, &g.VM.Spec)
}

// fingerprint is what can be seen of a guest by one question about all of them.
func fingerprint(d libvirtd.Domain, pids []int) string {
	return fmt.Sprint(d.ID, d.State, d.Pause, d.Resets.Count, pids)
}

func pidsOf(qemus []process.Process) (pids []int) {
	for _, q := range qemus {
		pids = append(pids, q.PID)
	}
	return pids
}

func domainState(d libvirtd.Domain) plan.Domain {
	switch {
	case !d.Exists || d.State == libvirtd.Shutoff:
		return plan.DomainAbsent
	case d.State == libvirtd.Paused && d.Pause == libvirtd.PausedByUser:
		return plan.DomainPaused
	case d.State == libvirtd.Paused && d.Pause == libvirtd.PausedOnIOError:
		return plan.DomainPausedOnIOError
	case d.State == libvirtd.Running, d.State == libvirtd.PMSuspended, d.State == libvirtd.ShuttingDown:
		return plan.DomainRunning
	case d.State == libvirtd.Crashed:
		return plan.DomainCrashed
	default:
		return plan.DomainUnknown // on its way from one state to another
	}
}

// observeContainer finds the shim. Without a berth there is none to find.
func (r *Reconciler) observeContainer(ctx context.Context, g *target, o *observed) {
	if o.berth == "" {
		o.Container = plan.ContainerAbsent
		return
	}
	o.session, o.Container, o.sessionErr = r.Host.Shims.Connect(ctx, g.uid, o.berth)
	if foreign, is := errors.AsType[runtime.UnsupportedError](o.sessionErr); is {
		o.UnsupportedRuntime = string(foreign)
	}
	o.ShimStarting = errors.Is(o.sessionErr, shimproto.ErrAbsent)
	o.ShimBroken = errors.Is(o.sessionErr, shimproto.ErrBroken)
	if o.session != nil {
		o.Shim = o.session.State(devicesOf(&g.Machine))
	}
	o.ShimSilent = o.Shim == nil && mayHaveHadGuest(o.session, o.sessionErr)
}

// mayHaveHadGuest: there is a shim, which says later whether it has had its guest. One that has no socket yet has had none.
func mayHaveHadGuest(session Session, err error) bool {
	return session != nil || errors.Is(err, shimproto.ErrBroken)
}

// findProcess finds where the guest's QEMU is, whatever libvirt says.
func (r *Reconciler) findProcess(uid string, o *observed) (plan.Process, []process.Process, error) {
	found, err := r.Host.Processes.Find(uid)
	switch {
	case err != nil:
		return plan.ProcessUnknown, nil, fmt.Errorf("looking for QEMU: %w", err)
	case len(found) == 0:
		return plan.ProcessNone, nil, nil
	case len(found) > 1:
		return plan.ProcessMultiple, found, nil
	}
	group, err := r.Host.Cgroups.Of(found[0].PID)
	if errors.Is(err, cgroup.ErrNoProcess) {
		return plan.ProcessNone, found, nil
	}
	if err != nil {
		return plan.ProcessUnknown, found, fmt.Errorf("reading the cgroup of QEMU: %w", err)
	}
	pod, container, in := group.Container()
	switch {
	case !in:
		return plan.ProcessUnplaced, found, nil
	case o.session == nil && o.Container == plan.ContainerUnknown: // it may be the right one
		return plan.ProcessUnknown, found, nil
	case o.session != nil && container == o.session.ContainerID() && pod == string(o.berth),
		o.session == nil && pod == string(o.berth) && o.Container == plan.ContainerAlive: // its shim is about to be reached
		return plan.ProcessInContainer, found, nil
	}
	return plan.ProcessInOtherContainer, found, nil
}

// watchQEMUs has the guest looked at when its QEMU ends: libvirt may take a second or two to tell.
func (r *Reconciler) watchQEMUs(uid types.UID, qemus []process.Process) {
	for _, q := range qemus {
		if _, isWatched := r.watched.LoadOrStore(q.PID, true); isWatched {
			continue
		}
		ended := func() {
			r.watched.Delete(q.PID)
			r.Enqueue(uid)
		}
		if exists, err := r.Host.Processes.Watch(q.PID, ended); err != nil || !exists {
			ended()
		}
	}
}

// observeDisks reads the guest's disks, and the images below those that are still to be made.
func (r *Reconciler) observeDisks(g *target, o *observed) error {
	made, err := r.Host.Store.Disks(string(g.uid))
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, d := range made {
		kept[d.Name] = !d.Ephemeral
		o.Disks = append(o.Disks, machine.Disk{
			Name: d.Name, Image: machine.Image{For: d.Name, Reference: d.Image, Digest: d.Base.Digest}, Size: d.VirtualSize,
			Ephemeral: d.Ephemeral, CDROM: d.CDROM, Path: d.Path,
		})
	}
	for _, v := range o.Volumes {
		kept[v.Disk] = kept[v.Disk] || v.Made
	}
	o.Images = map[string]plan.Image{}
	keys := r.keys(o.session, g.Machine.PullSecrets)
	for _, i := range g.Machine.Images() {
		if kept[i.For] {
			o.Images[i.For] = plan.Image{State: plan.ImageReady}
			continue
		}
		if name, is := i.Unresolved(); is { // a change of the VirtualMachineImage wakes the guest
			said := "VirtualMachineImage " + name + " is not resolved, or does not exist: kubectl describe vmimage " + name
			o.Images[i.For] = plan.Image{State: plan.ImagePulling, Progress: said}
			continue
		}
		if o.Images[i.For], err = r.Host.Images.State(g.uid, i, keys); err != nil {
			return err
		}
	}
	return nil
}

// contentOf is what the store keeps of an image whose digest is known.
func contentOf(i machine.Image) store.Content {
	return store.Content{Digest: i.Digest, Kernel: i.Kernel, Initrd: i.Initrd}
}

const outOfMemory = "QEMU was over the berth's memory limit"

// exits are how guests ended by what libvirt says, with the code that the berth's container ends with, as a process would.
var exits = map[libvirtd.Cause]plan.Exit{
	libvirtd.CausePoweredOff: {Reason: v1alpha1.ReasonPoweredOff},
	libvirtd.CausePanicked:   {Reason: v1alpha1.ReasonGuestPanicked, Code: 134, Message: "the guest's kernel panicked"},
	libvirtd.CauseDestroyed:  {Reason: v1alpha1.ReasonDestroyed, Code: 137, Message: "the domain was destroyed"},
	libvirtd.CauseTerminated: {Reason: v1alpha1.ReasonDestroyed, Code: 137, Message: "QEMU was ended by Berth's agent"},
	libvirtd.CauseSignalled:  {Reason: v1alpha1.ReasonDestroyed, Code: 143, Message: "QEMU was ended by a signal"},
	libvirtd.CauseFailed:     {Reason: v1alpha1.ReasonQEMUFailed, Code: 1, Message: "QEMU ended by itself or was killed"},
	libvirtd.CauseMoved:      {Reason: v1alpha1.ReasonDestroyed, Code: 137, Message: "the domain was moved or saved away"},
}

// exit finds out how a guest that is gone ended: from what its shim was told, the kernel, libvirt's event, or its log.
func (r *Reconciler) exit(g *target, o *observed) *plan.Exit {
	if exit := r.guests.lastExit(g.uid); exit != nil {
		return exit
	}
	served := o.Shim != nil && o.Shim.Attached || condition.Is(g.VM.Status.Conditions, v1alpha1.ConditionRunning, metav1.ConditionTrue)
	if !served {
		return nil
	}
	if o.session != nil {
		if kills, err := r.Host.Cgroups.OOMKills(o.session.Cgroup()); err == nil && kills > 0 {
			return &plan.Exit{Reason: v1alpha1.ReasonOOMKilled, Code: 137, Message: outOfMemory}
		}
	}
	stop, known := r.Host.Libvirt.ExitCause(string(g.uid), berth.DomainName(g.VM.Namespace, g.VM.Name))
	if !known {
		o.QEMUOutput = stop.Message
		return nil
	}
	if stop.Cause == libvirtd.CauseTerminated && o.Shim != nil && o.Shim.Attached && !o.Shim.Terminating {
		stop = libvirtd.Exit{Cause: libvirtd.CausePanicked} // an agent that was killed right after ends no other guest of a shim that lives
	}
	exit := exits[stop.Cause]
	if stop.Message != "" && exit.Message != "" {
		exit.Message += ": " + stop.Message
	}
	return &exit
}
