package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/guest/machine"
)

// How long things may take before they are done again, or given up.
const (
	// earlyLimit ends what may be done for a container that has not come: QEMU is begun early no more, and one that was is
	// ended. It counts from when a berth was first seen.
	earlyLimit = 60 * time.Second
	// askAgain repeats a request to power off.
	askAgain = 5 * time.Second
	// retryIOAfter resumes a guest whose disk was full or failed.
	retryIOAfter = 10 * time.Second
	// killAgain looks whether a killed QEMU is gone.
	killAgain = 200 * time.Millisecond
	// processGoneLimit is how long libvirt may take to notice that QEMU ended; meanwhile it is asked again after processGoneLook.
	processGoneLimit = 10 * time.Second
	processGoneLook  = 100 * time.Millisecond
	// contradictionLimit is how long libvirt must say so before a guest whose QEMU lives is ended on its word: one answer
	// can be a wrong one.
	contradictionLimit = 500 * time.Millisecond
	// shimLook is after what time a shim that has no socket yet is looked for again; lastShimLook if it does not come.
	shimLook     = 10 * time.Millisecond
	lastShimLook = 10 * time.Second
	// pullProgress reports how far a pull is.
	pullProgress = 10 * time.Second
	// secretsLook is when pull Secrets are looked at again that did not do: kubelet shows their changes, and tells nobody.
	secretsLook = time.Minute
	// drainLimit is for how long a shim may read what a guest that is gone has left, before that counts as nothing.
	drainLimit = 2 * time.Second
)

// Next is what follows from a look at a guest.
type Next struct {
	// Steps are to be done in order, until one fails.
	Steps []Step
	// Wake is when to look again though nothing was heard; 0 is never.
	Wake time.Duration
}

func steps(s ...Step) Next { return Next{Steps: s} }

// wakeIn has the guest looked at again in that time at the latest; 0 is no time.
func (n *Next) wakeIn(in time.Duration) {
	if in > 0 {
		n.Wake = min(cmp.Or(n.Wake, in), in)
	}
}

// Decide is the whole policy of a node: the first rule that applies wins. Whether
// a guest that ended is started again is kubelet's decision, not ours. m is the
// memory of the look before; what is returned is that of this one.
func Decide(w Want, h Have, m Memory, now time.Time) (Next, Memory) {
	m = m.after(w, h, now)
	next := decide(w, h, m, now)
	if h.Domain == DomainPausedOnIOError && slices.Contains(next.Steps, Step(Resume{})) {
		m.diskError = now // it may fail again before anybody sees it run, and is not to be resumed at each look then
	}
	if h.ShimStarting && h.Unknown == nil && len(next.Steps) == 0 {
		next.wakeIn(min(max(age(m.shimStarting, now), shimLook), lastShimLook)) // each takes twice as long to come as the one before
	}
	for _, v := range h.Volumes {
		if len(next.Steps) == 0 {
			next.wakeIn(v.rests(now))
		}
	}
	next, m.tools = m.tools.startTools(next, h, now)
	m.asked = asked(w, h, m, next.Steps, now)
	return next, m
}

func decide(w Want, h Have, m Memory, now time.Time) Next {
	switch {
	case h.Process == ProcessUnknown:
		return Next{} // what cannot be known wakes us when it can
	case h.Domain == DomainUnknown:
		return decideWithoutLibvirt(w, h)
	case h.guest():
		return decideGuest(w, h, m, now)
	case h.Container == ContainerUnknown:
		return Next{}
	default:
		return decideEmpty(w, h, m, now)
	}
}

// decideWithoutLibvirt ends a guest whose end is certain without libvirt's word: its container is not the berth's any more,
// or has been asked to end and its time is over. Without a berth the domain would have to say whose container counts.
func decideWithoutLibvirt(w Want, h Have) Next {
	switch {
	case w.Berth == nil:
		return Next{}
	case h.Process == ProcessInOtherContainer:
		return Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain}
	case h.Process != ProcessInContainer || h.Shim == nil || !h.Shim.Terminating:
		return Next{}
	case h.Shim.TerminatingFor < w.grace():
		return Next{Wake: w.grace() - h.Shim.TerminatingFor}
	default:
		return steps(Destroy{})
	}
}

// decideGuest: there is a QEMU.
func decideGuest(w Want, h Have, m Memory, now time.Time) Next {
	contradicted, gone := age(m.contradictory, now), age(m.processGone, now)
	switch {
	case h.Process == ProcessMultiple, h.Process == ProcessInOtherContainer && w.Berth != nil: // the berth moved on
		return Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain}
	case h.contradictory() && contradicted < contradictionLimit:
		return Next{Wake: contradictionLimit - contradicted}
	case h.Domain == DomainAbsent && h.Process != ProcessNone, // libvirt forgot it
		h.Process == ProcessInOtherContainer: // than that of the berth that its domain names
		return Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain}
	case h.Process == ProcessNone && gone < processGoneLimit: // it ended, and libvirt is about to say how
		return Next{Wake: processGoneLook}
	case h.Process == ProcessNone, h.Domain == DomainCrashed:
		return steps(Destroy{})
	case h.Container == ContainerUnknown:
		return Next{}
	case h.Container == ContainerDead:
		return steps(Destroy{})
	case h.Container == ContainerAbsent && h.Process == ProcessUnplaced && w.accepts(&h) && m.early(w.Berth, now) > 0:
		return Next{Wake: m.early(w.Berth, now)}
	case h.Container == ContainerAbsent:
		return steps(Destroy{})
	case h.Shim == nil && h.Process == ProcessUnplaced: // it was started early
		if left := earlyLimit - age(m.berthSeen, now); left > 0 && w.accepts(&h) {
			return Next{Wake: left}
		}
		return steps(Destroy{}) // its container turned out wrong, or its shim says nothing
	case h.Shim == nil:
		return Next{} // its socket is being taken; that wakes us
	case !h.Shim.Attached && h.Shim.Terminating, !h.Shim.Attached && !w.accepts(&h):
		return steps(Destroy{})
	case !h.Shim.Attached && h.StartUnknown != nil:
		return Next{}
	case !h.Shim.Attached:
		return steps(start(w, h)...)
	case h.Process != ProcessInContainer: // somebody made another domain of our UUID
		return Next{Steps: []Step{Destroy{}, Kill{}}, Wake: killAgain}
	case h.Shim.Terminating:
		return stop(w, h)
	default:
		next := keep(w, h, age(m.diskError, now), now)
		if len(next.Steps) == 0 {
			next.addLive(liveChanges(w, h, m, now))
			next.Steps = append(next.Steps, unwanted(w, h)...)
		}
		return next
	}
}

// start goes on with a guest whose QEMU exists and whose shim waits.
func start(w Want, h Have) []Step {
	list := slices.Concat([]Step{MoveToCgroup{}}, grown(h), growth(w, h))
	if len(w.Machine.NICs) > 0 {
		list = append(list, ConnectNICs{w.Machine.NICs, w.Machine.ReservedPorts()})
	}
	if seed(w, h) != nil {
		list = append(list, WriteSeed{w.Machine})
	}
	list = append(list, HandOver{w.Machine})
	if w.paused() {
		return append(list, NotifyShim{Paused: true})
	}
	return append(list, Resume{}, NotifyShim{})
}

// seed is what cloud-init gets, nil for nothing: to one that ran without, a seed would mean that it is on a new machine. Who
// asks for one has that.
func seed(w Want, h Have) *machine.Seed {
	if s := w.Machine.Seed; s != nil && s.Implied && h.RanWithoutSeed {
		return nil
	}
	return w.Machine.Seed
}

// stop asks the guest to power off, again and again, and ends it when its time is over.
func stop(w Want, h Have) Next {
	left := w.grace() - h.Shim.TerminatingFor
	switch {
	case left <= 0:
		return steps(append([]Step{Destroy{}}, exit(w, h)...)...)
	case h.Domain == DomainPaused: // halted vCPUs cannot power off
		return Next{Steps: []Step{Resume{}, Shutdown{h.AgentChannelOpen}}, Wake: min(left, askAgain)}
	default:
		return Next{Steps: []Step{Shutdown{h.AgentChannelOpen}}, Wake: min(left, askAgain)}
	}
}

// keep holds a guest in the state that the spec asks for; diskError is for how long its disk has been full or failing.
func keep(w Want, h Have, diskError time.Duration, now time.Time) Next {
	switch {
	case h.Shim.asks():
		return steps(h.Shim.actions()...)
	case w.paused() && h.Domain == DomainRunning:
		return steps(Pause{}, NotifyShim{Paused: true})
	case w.VM != nil && !w.paused() && h.Domain == DomainPaused:
		return steps(Resume{PausedExternally: condition.Is(w.VM.Status.Conditions, v1alpha1.ConditionRunning, metav1.ConditionTrue)}, NotifyShim{})
	case !h.Shim.Running, h.LatestResets[0].After(h.Shim.ResetTold):
		return steps(NotifyShim{Paused: h.Domain == DomainPaused, Reset: h.LatestResets[0]})
	case len(grown(h)) > 0:
		return steps(grown(h)...)
	case len(outgrown(w, h, now)) > 0:
		return Next{Steps: []Step{MakeVolumes{outgrown(w, h, now)}}, Wake: pullProgress}
	case h.Domain == DomainPausedOnIOError && diskError < retryIOAfter:
		return Next{Wake: retryIOAfter - diskError}
	case h.Domain == DomainPausedOnIOError:
		return Next{Steps: []Step{Resume{}}, Wake: retryIOAfter}
	case h.Domain != DomainRunning || !startingUp(w, h):
		return Next{}
	}
	late := h.Shim.RunningFor - w.startupLimit()
	switch {
	case late < 0:
		return Next{Wake: -late}
	case late < w.grace():
		return Next{Steps: []Step{Shutdown{h.AgentChannelOpen}}, Wake: min(w.grace()-late, askAgain)}
	default:
		return steps(Destroy{})
	}
}

// asks: somebody has asked for what is not done yet.
func (s *Shim) asks() bool { return s.Resets > s.ResetsDone || s.NMIs > s.NMIsDone }

// actions are what somebody has asked for, each once however often.
func (s *Shim) actions() (list []Step) {
	if s.NMIs > s.NMIsDone { // first, as the reset would end what it is for
		list = append(list, InjectNMI{})
	}
	if s.Resets > s.ResetsDone {
		list = append(list, Reset{})
	}
	return append(list, ConfirmActions{s.Resets, s.NMIs})
}

// startingUp: the guest's own startup probe has not passed yet.
func startingUp(w Want, h Have) bool {
	return w.startupLimit() > 0 && h.Shim.Running && w.Berth != nil && !w.Berth.ProbeStarted
}

// decideEmpty: there is no QEMU, for certain.
func decideEmpty(w Want, h Have, m Memory, now time.Time) Next {
	switch {
	case h.ShimSilent:
		return Next{} // it may have had its guest, while no agent was there; what it says wakes us
	case h.draining() && age(m.draining, now) < drainLimit:
		return Next{Wake: drainLimit - age(m.draining, now)}
	case h.Left && (h.Shim == nil || !h.Shim.Attached), // its container ended first, or its start failed
		len(h.Volumes) > 0 && h.Shim == nil && h.Container != ContainerAlive: // its container ended, or there is none
		return steps(CleanUp{})
	case w.deleting() && h.Kept && (w.Berth == nil || w.Berth.Terminating):
		return steps(append(exit(w, h), RemoveDisks{})...)
	case h.Shim != nil && (h.Shim.Attached || h.Shim.Terminating):
		return steps(exit(w, h)...)
	case h.StartUnknown != nil:
		return Next{}
	case len(unwanted(w, h)) > 0:
		return steps(unwanted(w, h)...)
	case w.Elsewhere && h.Kept && !h.keepsDisks():
		return steps(RemoveDisks{})
	case w.accepts(&h) && (h.Shim != nil || m.early(w.Berth, now) > 0 && h.Container != ContainerDead && !w.ran()):
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
		return []Step{CleanUp{}, EndShim{ended(w, h)}}
	default:
		return []Step{CleanUp{}, EndShim{Exit: Exit{Reason: v1alpha1.ReasonNotRunning}}}
	}
}

// ended is the verdict on a guest that is gone.
func ended(w Want, h Have) Exit {
	ours := h.Exit == nil || h.Exit.Reason == v1alpha1.ReasonDestroyed
	switch {
	case h.Exit != nil && !h.Exit.ReportedAt.IsZero():
		return *h.Exit
	case ours && h.Shim.Terminating && h.Shim.TerminatingFor >= w.grace():
		return ForcedOff
	case startingUp(w, h) && h.Shim.RunningFor >= w.startupLimit():
		return Exit{Reason: v1alpha1.ReasonStartupProbeFailed, Code: 137, Message: "the guest did not pass its startupProbe in time and was ended"}
	case h.Exit != nil && h.Exit.Reason == v1alpha1.ReasonPoweredOff:
		return powerOff(h.Shim)
	case h.Exit == nil:
		exit := Exit{Reason: v1alpha1.ReasonQEMUFailed, Code: 1, Message: "QEMU exited; neither libvirt's events nor its log tell a cause"}
		if h.QEMUOutput != "" {
			exit.Message += ". The log ends: " + h.QEMUOutput
		}
		return exit
	}
	return *h.Exit
}

// powerOff is the end of a guest that did so by itself or when it was asked to, with the code that it left for it.
func powerOff(s *Shim) Exit {
	exit := Exit{Reason: v1alpha1.ReasonPoweredOff}
	if s.Terminating {
		exit.Reason = v1alpha1.ReasonShutDown
	}
	if s.ExitText == "" {
		return exit
	}
	code, err := strconv.ParseUint(strings.TrimSpace(s.ExitText), 10, 8)
	if err != nil {
		exit.Message = fmt.Sprintf("the guest wrote %q to its exit port, which is no number from 0 to 255 and counts as nothing", s.ExitText)
		return exit
	}
	exit.Code = int32(code)
	return exit
}

// prepare brings a guest as far as it can come now: to a halted QEMU, or all the way if the shim waits for it.
func prepare(w Want, h Have, now time.Time) (next Next) {
	if unusableDisks(w, h) != nil {
		return Next{} // the report says so; a change of the spec wakes us, and each resync has another look
	}
	var missing []machine.Image
	for _, image := range w.Machine.Images() {
		has := h.Images[image.For]
		switch {
		case has.State == ImageReady:
		case has.State == ImageMissing, has.State == ImageFailed && !now.Before(has.Retry):
			missing = append(missing, image)
		case has.State == ImageFailed:
			next.wakeIn(has.Retry.Sub(now))
			if len(w.Machine.PullSecrets) > 0 {
				next.wakeIn(secretsLook)
			}
		default:
			next.wakeIn(pullProgress)
		}
	}
	switch {
	case len(missing) > 0 && h.Shim == nil && len(w.Machine.PullSecrets) > 0:
		return Next{} // the secrets can be read once the container runs; that wakes us
	case len(missing) > 0:
		return Next{Steps: []Step{PullImages{missing, w.Machine.PullSecrets}}, Wake: pullProgress}
	case next.Wake > 0:
		return next
	}
	if next, done := attach(w, h, now); !done {
		return next
	}
	switch {
	case h.Shim == nil && w.Machine.ReadsSecret():
		return Next{} // the Secret can be read once the container runs; that wakes us
	case h.Shim == nil:
		return steps(create(w, h)...)
	}
	return steps(append(create(w, h), start(w, h)...)...)
}

// create makes all that is missing of the guest, up to its halted QEMU. Its images are there.
func create(w Want, h Have) (list []Step) {
	m := w.Machine
	m.Seed = seed(w, h)
	if m.Kernel != nil {
		kernel := *m.Kernel
		kernel.Image.Digest = h.Images[machine.ForKernel].Digest
		m.Kernel = &kernel
		list = append(list, KeepKernel{kernel.Image})
	}
	for _, d := range m.Disks {
		if d.Claim == nil {
			list = append(list, makeDisk(d, h)...)
		}
	}
	return append(list, CreateDomain{m, w.Berth.UID})
}
