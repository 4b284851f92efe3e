package plan

import (
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Memory is since when a guest has been in states that mean something else once they last. It is kept from one look to
// the next; the zero value is that of a guest which was never looked at. To lose it only makes things take longer.
type Memory struct {
	// diskError: QEMU has paused the guest because its disk is full or fails.
	diskError time.Time
	// processGone: libvirt has a domain of which there is no QEMU.
	processGone time.Time
	// contradictory: libvirt has said at each look what ends a guest, though its QEMU lives; see Have.contradictory.
	contradictory time.Time
	// shimStarting: see Have.ShimStarting.
	shimStarting time.Time
	// exitUnknown: the guest is gone, and nobody has said how it ended; see exitUnknown.
	exitUnknown time.Time
	// resetsBefore are the guest's resets before this agent saw it, and resetsKnown that this is known of the present guest.
	resetsBefore int32
	resetsKnown  bool
	// berthSeen is when the berth of this UID was first seen, and berthOld that kubelet had it for long by then: a former
	// agent may have begun QEMU early for it, to the end of that time.
	berth     types.UID
	berthSeen time.Time
	berthOld  bool
	// draining: the guest is gone, and its shim still reads; see Shim.Draining.
	draining time.Time
	tools    tools
	// asked is when the guest was last asked to let go of these disks, or of what is in these CD-ROMs.
	asked map[string]time.Time
}

// after is the memory after a look. What could not be seen stays as it was, but a contradiction has to be seen each time.
func (m Memory) after(w Want, h Have, now time.Time) Memory {
	if b := w.Berth; b != nil && b.UID != m.berth {
		m.berth, m.berthSeen = b.UID, now
		m.berthOld = !b.Accepted.IsZero() && now.Sub(b.Accepted) >= earlyLimit
	}
	if m.berthSeen.After(now) { // the clock was set back
		m.berthSeen = now
	}
	if h.Domain == DomainUnknown || h.Process == ProcessUnknown {
		m.contradictory = time.Time{}
		return m
	}
	switch {
	case h.Domain == DomainAbsent: // the next begins anew
		m.resetsBefore, m.resetsKnown = 0, true
	case !m.resetsKnown && w.VM != nil:
		m.resetsBefore, m.resetsKnown = w.VM.Status.Resets, true
	}
	m.tools = m.tools.afterLook(h, now)
	since(&m.draining, h.draining(), now)
	since(&m.diskError, h.Domain == DomainPausedOnIOError, now)
	since(&m.processGone, h.Domain != DomainAbsent && h.Process == ProcessNone, now)
	since(&m.contradictory, h.contradictory(), now)
	if h.Unknown != nil {
		return m
	}
	since(&m.shimStarting, h.ShimStarting, now)
	since(&m.exitUnknown, w.VM != nil && exitUnknown(w, h), now)
	return m
}

// since keeps in first since when it is so, zero while it is not.
func since(first *time.Time, is bool, now time.Time) {
	switch {
	case !is:
		*first = time.Time{}
	case first.IsZero(), first.After(now): // the clock was set back
		*first = now
	}
}

// early is for how long a QEMU may still be there before the first container of a berth. It is the only end of that, for
// beginning one and for letting it wait: after it, QEMU is begun only for a shim that is there. It counts from this agent's
// own look, since a pod's times are those of other clocks, and time.Now tells durations that no clock's jump changes.
func (m Memory) early(b *Berth, now time.Time) time.Duration {
	if !b.NeverStarted || m.berthOld {
		return 0
	}
	return max(0, earlyLimit-age(m.berthSeen, now))
}

// age is for how long a state has lasted since it was first seen, 0 if it does not last.
func age(since, now time.Time) time.Duration {
	if since.IsZero() {
		return 0
	}
	return now.Sub(since)
}
