package agent

import (
	"context"
	"errors"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/shims"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
)

// observe reads all that the host has of a guest. It cannot fail: what cannot be read is Unknown.
func (a *Agent) observe(ctx context.Context, g *guest) plan.Have {
	var h plan.Have
	unknown := func(err error) plan.Have {
		if h.Unknown == nil {
			h.Unknown = err
		}
		return h
	}
	found, err := a.libvirt.Domain(ctx, string(g.uid))
	if err != nil {
		return unknown(err)
	}
	var facts domain.Facts
	if h.Domain = domainState(found); found.Exists {
		if facts, err = domain.ParseFacts(found.XML); err != nil {
			return unknown(fmt.Errorf("reading domain %s: %w", found.Name, err))
		}
		if facts.Identity == nil || facts.Identity.VM != string(g.uid) {
			return unknown(fault.ByUser(v1alpha1.ReasonDomainNameTaken, fmt.Errorf(
				"domain %s on node %s has this guest's UUID and is not Berth's: undefine or destroy it with virsh", found.Name, a.Node)))
		}
		g.agentConnected = facts.AgentConnected
		if g.berthUID == "" {
			g.berthUID = types.UID(facts.Identity.Berth)
		}
	}
	if h.Pending, err = g.pending(facts); err != nil {
		return unknown(err)
	}
	a.observeAgent(g, &h, facts.AgentConnected) //nolint:contextcheck // what it begins outlives the sync, and ends with the agent

	a.observeContainer(ctx, g, &h)
	if err := observeProcess(g, &h); err != nil {
		return unknown(err)
	}
	a.watchQEMU(g)
	g.fromAfar = fromAfar(found, pidsOf(g.qemu))
	if h.Kept, err = a.store.Has(string(g.uid)); err != nil {
		return unknown(err)
	}
	if h.Left, err = a.left(string(g.uid)); err != nil {
		return unknown(err)
	}
	if h.Container == plan.ContainerUnknown {
		return unknown(fault.ByTime(v1alpha1.ReasonRuntimeUnreachable, g.linkErr))
	}
	if g.VM != nil {
		if err := a.observeDisks(g, &h); err != nil {
			return unknown(err)
		}
		if h.Domain == plan.DomainAbsent && h.Process == plan.ProcessNone {
			h.End = a.end(g, &h)
		}
	}
	return h
}

// pending are the changes of the spec since the guest was started. Its domain tells with what; one from before domains
// told was started with what its berth was made from.
func (g *guest) pending(facts domain.Facts) ([]v1alpha1.PendingChange, error) {
	if g.VM == nil || facts.Identity == nil {
		return nil, nil
	}
	record := facts.Identity.Record
	if record == "" {
		record = g.berthRecord
	}
	if record == "" {
		return nil, nil
	}
	return berth.Changes(record, &g.VM.Spec)
}

// fromAfar is what a recheck can see of a guest, by one question about all of them.
func fromAfar(d libvirtd.Domain, pids []int) string {
	return fmt.Sprint(d.ID, d.State, d.Pause, pids)
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
		return plan.DomainBlocked
	case d.State == libvirtd.Running, d.State == libvirtd.Suspended, d.State == libvirtd.ShuttingDown:
		return plan.DomainRunning
	case d.State == libvirtd.Crashed:
		return plan.DomainCrashed
	default:
		return plan.DomainUnknown // on its way from one state to another
	}
}

// observeContainer finds the shim. Without a berth there is none to find.
func (a *Agent) observeContainer(ctx context.Context, g *guest, h *plan.Have) {
	g.link, g.linkErr = nil, nil
	if g.berthUID == "" {
		h.Container = plan.ContainerAbsent
		return
	}
	g.link, h.Container, g.linkErr = a.shims.Connect(ctx, g.uid, g.berthUID)
	if foreign, is := errors.AsType[shims.UnsupportedRuntimeError](g.linkErr); is && g.Berth != nil {
		g.Berth.Runtime = string(foreign)
	}
	if g.link != nil {
		h.Shim = g.link.State(devices(g.VM))
	}
	h.ShimSilent = h.Shim == nil && mayHaveHadGuest(g.link, g.linkErr)
}

// mayHaveHadGuest: there is a shim, which says later whether it has had its guest. One that has no socket yet has had none.
func mayHaveHadGuest(session *shims.Session, err error) bool {
	return session != nil || errors.Is(err, shims.ErrBroken)
}

// observeProcess finds where the guest's QEMU is, whatever libvirt says.
func observeProcess(g *guest, h *plan.Have) error {
	found, err := process.Find(string(g.uid))
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	g.qemu = found
	switch len(found) {
	case 0:
		h.Process = plan.ProcessNone
		return nil
	case 1:
	default:
		h.Process = plan.ProcessSeveral
		return nil
	}
	group, err := cgroup.Of(found[0].PID)
	if errors.Is(err, cgroup.ErrNoProcess) {
		h.Process = plan.ProcessNone
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading the cgroup of QEMU: %w", err)
	}
	pod, container, in := group.Container()
	switch {
	case !in:
		h.Process = plan.ProcessLoose
	case g.link != nil && container == g.link.ContainerID() && pod == string(g.berthUID):
		h.Process = plan.ProcessPlaced
	case g.link == nil && pod == string(g.berthUID) && h.Container == plan.ContainerAlive:
		h.Process = plan.ProcessPlaced // its shim is about to be reached
	default:
		h.Process = plan.ProcessElsewhere
	}
	return nil
}

// left tells whether a run of the guest has left something.
func (a *Agent) left(uid string) (bool, error) {
	if _, err := os.Lstat(a.consolePath(uid)); err == nil {
		return true, nil
	}
	return a.store.HasSeed(uid)
}

// watchQEMU has the guest looked at when its QEMU ends: libvirt may take a second or two to tell.
func (a *Agent) watchQEMU(g *guest) {
	for _, q := range g.qemu {
		if _, watched := a.watched.LoadOrStore(q.PID, true); watched {
			continue
		}
		handle, err := process.Open(q.PID)
		if err != nil { // it has ended
			a.watched.Delete(q.PID)
			a.enqueue(g.uid)
			continue
		}
		go func() {
			_ = handle.Wait() // an error is its end, too: nobody else closes it
			_ = handle.Close()
			a.watched.Delete(q.PID)
			a.enqueue(g.uid)
		}()
	}
}

// observeDisks reads the guest's disks, and the images below those that are still to be made.
func (a *Agent) observeDisks(g *guest, h *plan.Have) error {
	made, err := a.store.Disks(string(g.uid))
	if err != nil {
		return err
	}
	kept := map[string]bool{}
	for _, d := range made {
		s := v1alpha1.DiskStatus{
			Name: d.Name, Image: d.Image, ImageDigest: d.Base.Digest, Ephemeral: d.Ephemeral,
			Size: resource.NewQuantity(d.VirtualSize, resource.BinarySI),
		}
		kept[d.Name] = !s.Ephemeral
		h.Disks = append(h.Disks, s)
	}
	h.Base = map[string]plan.Image{}
	g.images = map[string]store.Content{}
	keys := keychain(g)
	for _, i := range requiredImages(g.VM) {
		if kept[i.Name] {
			h.Base[i.Name] = plan.Image{State: plan.ImageReady}
			continue
		}
		if h.Base[i.Name], err = a.pulls.State(g.uid, i, keys); err != nil {
			return err
		}
		g.images[i.Name] = i.Content(h.Base[i.Name].Digest)
	}
	return nil
}

const outOfMemory = "QEMU was over the berth's memory limit"

// exitCodes are what a berth's container ends with, as a process would.
var exitCodes = map[libvirtd.Cause]plan.End{
	libvirtd.CausePoweredOff: {Reason: v1alpha1.ReasonPoweredOff},
	libvirtd.CausePanicked:   {Reason: v1alpha1.ReasonGuestPanicked, Code: 134, Message: "the guest's kernel panicked"},
	libvirtd.CauseDestroyed:  {Reason: v1alpha1.ReasonDestroyed, Code: 137, Message: "the domain was destroyed"},
	libvirtd.CauseSignalled:  {Reason: v1alpha1.ReasonDestroyed, Code: 143, Message: "QEMU was ended by a signal"},
	libvirtd.CauseFailed:     {Reason: v1alpha1.ReasonQEMUFailed, Code: 1, Message: "QEMU ended by itself or was killed"},
	libvirtd.CauseMoved:      {Reason: v1alpha1.ReasonDestroyed, Code: 137, Message: "the domain was moved or saved away"},
}

// end finds out how a guest that is gone ended: from the kernel, from libvirt's event, or from its log.
func (a *Agent) end(g *guest, h *plan.Have) *plan.End {
	if end, ok := a.hints.verdict(g.uid); ok {
		return &end
	}
	served := h.Shim != nil && h.Shim.Attached || condition.Is(g.VM.Status.Conditions, v1alpha1.ConditionRunning, metav1.ConditionTrue)
	if !served {
		return nil
	}
	if g.link != nil {
		if kills, err := a.cgroups.OOMKills(g.link.Cgroup()); err == nil && kills > 0 {
			return &plan.End{Reason: v1alpha1.ReasonOOMKilled, Code: 137, Message: outOfMemory}
		}
	}
	stop, known := a.libvirt.LastStop(string(g.uid))
	if !known {
		root, err := a.libvirt.Root()
		if err != nil {
			return nil
		}
		if stop, err = libvirtd.ReadStop(root, a.domainName(g)); err != nil || stop.Cause == libvirtd.CauseUnknown {
			return nil
		}
	}
	end := exitCodes[stop.Cause]
	if stop.Message != "" {
		end.Message += ": " + stop.Message
	}
	return &end
}
