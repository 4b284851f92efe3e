package plan

import (
	"maps"
	"slices"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// How long things may take before they are done again, or given up.
const (
	// unplacedLimit ends a paused QEMU whose container does not come.
	unplacedLimit = 60 * time.Second
	// askAgain repeats a request to power off.
	askAgain = 5 * time.Second
	// unblockAfter resumes a guest whose disk was full or failed.
	unblockAfter = 10 * time.Second
	// killAgain looks whether a killed QEMU is gone.
	killAgain = 200 * time.Millisecond
	// processGoneLimit is how long libvirt may take to notice that QEMU ended; meanwhile it is asked again after processGoneLook.
	processGoneLimit = 10 * time.Second
	processGoneLook  = 100 * time.Millisecond
	// contradictionLimit is how long libvirt must say so before a guest whose QEMU lives is ended on its word: one answer
	// can be a wrong one.
	contradictionLimit = 500 * time.Millisecond
	// pullProgress reports how far a pull is.
	pullProgress = 10 * time.Second
)

// Next is what follows from a look at a guest.
type Next struct {
	// Steps are to be done in order, until one fails.
	Steps []Step
	// Wake is when to look again though nothing was heard; 0 is never.
	Wake time.Duration
}

func steps(s ...Step) Next { return Next{Steps: s} }

// Decide is the whole policy of a node: the first rule that applies wins. Whether
// a guest that ended is started again is kubelet's decision, not ours. m is the
// memory of the look before; what is returned is that of this one.
func Decide(w Want, h Have, m Memory, now time.Time) (Next, Memory) {
	m = m.after(w, h, now)
	return decide(w, h, m, now), m
}

func decide(w Want, h Have, m Memory, now time.Time) Next {
	switch {
	case h.Unknown != nil || h.Domain == DomainUnknown || h.Process == ProcessUnknown:
		return Next{} // what cannot be known wakes us when it can
	case h.guest():
		return decideGuest(w, h, m, now)
	case h.Container == ContainerUnknown:
		return Next{}
	default:
		return decideEmpty(w, h, now)
	}
}

// decideGuest: there is a QEMU.
func decideGuest(w Want, h Have, m Memory, now time.Time) Next {
	contradicted, gone := age(m.contradictory, now), age(m.processGone, now)
	switch {
	case h.Process == ProcessSeveral, h.Process == ProcessElsewhere: // the berth moved on
		return Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain}
	case h.contradictory() && contradicted < contradictionLimit:
		return Next{Wake: contradictionLimit - contradicted}
	case h.Domain == DomainAbsent && h.Process != ProcessNone: // libvirt forgot it
		return Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain}
	case h.Process == ProcessNone && gone < processGoneLimit: // it ended, and libvirt is about to say how
		return Next{Wake: processGoneLook}
	case h.Process == ProcessNone:
		return steps(Destroy{})
	case h.Domain == DomainCrashed:
		return steps(Destroy{})
	case h.Container == ContainerUnknown:
		return Next{}
	case h.Container == ContainerDead, h.Container == ContainerAbsent && !mayWait(w, h, now):
		return steps(Destroy{})
	case h.Container == ContainerAbsent:
		return Next{Wake: w.Berth.Created.Add(unplacedLimit).Sub(now)}
	case h.Shim == nil && h.Process == ProcessLoose && !w.accepts(): // it was started early, for a container that turned out wrong
		return steps(Destroy{})
	case h.Shim == nil:
		return Next{} // its socket is being taken; that wakes us
	case !h.Shim.Attached && h.Shim.Terminating, !h.Shim.Attached && !w.accepts():
		return steps(Destroy{})
	case !h.Shim.Attached:
		return steps(start(w)...)
	case h.Process != ProcessPlaced: // somebody made another domain of our UUID
		return Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain}
	case h.Shim.Terminating:
		return stop(w, h)
	default:
		return keep(w, h, age(m.diskError, now))
	}
}

// mayWait: a QEMU that was started early may wait for its first container.
func mayWait(w Want, h Have, now time.Time) bool {
	return w.accepts() && w.Berth.Fresh && h.Process == ProcessLoose && now.Sub(w.Berth.Created) < unplacedLimit
}

// start goes on with a guest whose QEMU exists and whose shim waits.
func start(w Want) []Step {
	list := []Step{Place{}, Plug{}, Seed{}, Attach{}}
	if w.paused() {
		return append(list, Tell{Paused: true})
	}
	return append(list, Resume{}, Tell{})
}

// stop asks the guest to power off, again and again, and ends it when its time is over.
func stop(w Want, h Have) Next {
	left := w.grace() - h.Shim.TerminatingFor
	switch {
	case left <= 0:
		return steps(append([]Step{Destroy{}}, exit(w, h)...)...)
	case h.Domain == DomainPaused: // halted vCPUs cannot power off
		return Next{Steps: []Step{Resume{}, Shutdown{}}, Wake: min(left, askAgain)}
	default:
		return Next{Steps: []Step{Shutdown{}}, Wake: min(left, askAgain)}
	}
}

// keep holds a guest in the state that the spec asks for; diskError is for how long its disk has been full or failing.
func keep(w Want, h Have, diskError time.Duration) Next {
	switch {
	case w.paused() && h.Domain == DomainRunning:
		return steps(Suspend{}, Tell{Paused: true})
	case w.VM != nil && !w.paused() && h.Domain == DomainPaused:
		return steps(Resume{}, Tell{})
	case !h.Shim.Running:
		return steps(Tell{Paused: h.Domain == DomainPaused})
	case h.Domain == DomainBlocked && diskError < unblockAfter:
		return Next{Wake: unblockAfter - diskError}
	case h.Domain == DomainBlocked:
		return Next{Steps: []Step{Resume{}}, Wake: unblockAfter}
	case h.Domain != DomainRunning || !startingUp(w, h):
		return Next{}
	}
	late := h.Shim.RunningFor - w.startupLimit()
	switch {
	case late < 0:
		return Next{Wake: -late}
	case late < w.grace():
		return Next{Steps: []Step{Shutdown{}}, Wake: min(w.grace()-late, askAgain)}
	default:
		return steps(Destroy{})
	}
}

// startingUp: the guest's own startup probe has not passed yet.
func startingUp(w Want, h Have) bool {
	return w.startupLimit() > 0 && h.Shim.Running && w.Berth != nil && !w.Berth.ProbeStarted
}

// decideEmpty: there is no QEMU, for certain.
func decideEmpty(w Want, h Have, now time.Time) Next {
	switch {
	case h.ShimSilent:
		return Next{} // it may have had its guest, while no agent was there; what it says wakes us
	case h.Left && (h.Shim == nil || !h.Shim.Attached): // its container ended first, or its start failed
		return steps(Clear{})
	case w.deleting() && h.Kept && (w.Berth == nil || w.Berth.Ending):
		return steps(append(exit(w, h), RemoveDisks{})...)
	case h.Shim != nil && (h.Shim.Attached || h.Shim.Terminating):
		return steps(exit(w, h)...)
	case w.Elsewhere && h.Kept && !h.keepsDisks():
		return steps(RemoveDisks{})
	case w.accepts() && (h.Shim != nil || w.Berth.Fresh && h.Container != ContainerDead && !w.ran()):
		return prepare(w, h, now)
	default:
		return Next{}
	}
}

// exit ends a shim whose guest is gone, once.
func exit(w Want, h Have) []Step {
	switch {
	case h.Shim == nil || h.Shim.Exiting:
		return nil
	case h.Shim.Attached:
		return []Step{Clear{}, Exit{End: ended(w, h)}}
	default:
		return []Step{Clear{}, Exit{End: End{Reason: v1alpha1.ReasonNotRunning}}}
	}
}

// ended is the verdict on a guest that is gone.
func ended(w Want, h Have) End {
	ours := h.End == nil || h.End.Reason == v1alpha1.ReasonDestroyed
	switch {
	case h.End != nil && !h.End.Told.IsZero():
		return *h.End
	case ours && h.Shim.Terminating && h.Shim.TerminatingFor >= w.grace():
		return ForcedOff
	case startingUp(w, h) && h.Shim.RunningFor >= w.startupLimit():
		return End{Reason: v1alpha1.ReasonStartupProbeFailed, Code: 137, Message: "the guest did not pass its startupProbe in time and was ended"}
	case h.End == nil:
		return End{Reason: v1alpha1.ReasonQEMUFailed, Code: 1, Message: "QEMU exited; neither libvirt's events nor its log tell a cause"}
	}
	return *h.End
}

// prepare brings a guest as far as it can come now: to a halted QEMU, or all the way if the shim waits for it.
func prepare(w Want, h Have, now time.Time) Next {
	var missing []string
	var wake time.Duration
	waiting := false
	for _, base := range slices.Sorted(maps.Keys(h.Base)) {
		image := h.Base[base]
		switch {
		case image.State == ImageReady:
		case image.State == ImageMissing, image.State == ImageFailed && !now.Before(image.Retry):
			missing = append(missing, base)
		case image.State == ImageFailed:
			waiting, wake = true, max(wake, image.Retry.Sub(now))
		default:
			waiting, wake = true, max(wake, pullProgress)
		}
	}
	switch {
	case len(missing) > 0 && h.Shim == nil && len(w.VM.Spec.ImagePullSecrets) > 0:
		return Next{} // the secrets can be read once the container runs; that wakes us
	case len(missing) > 0:
		return Next{Steps: []Step{Pull{missing}}, Wake: pullProgress}
	case waiting:
		return Next{Wake: wake}
	case h.Shim == nil:
		return steps(MakeDisks{}, Create{})
	default:
		return steps(append([]Step{MakeDisks{}, Create{}}, start(w)...)...)
	}
}
