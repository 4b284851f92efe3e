package plan

import "time"

// Memory is since when a guest has been in states that mean something else once they last. It is kept from one look to
// the next; the zero value is that of a guest which was never looked at. To lose it only makes things take longer.
type Memory struct {
	// diskError: QEMU has paused the guest because its disk is full or fails.
	diskError time.Time
	// processGone: libvirt has a domain of which there is no QEMU.
	processGone time.Time
	// contradictory: libvirt has said at each look what ends a guest, though its QEMU lives; see Have.contradictory.
	contradictory time.Time
	// exitUnknown: the guest is gone, and nobody has said how it ended; see exitUnknown.
	exitUnknown time.Time
}

// after is the memory after a look. What could not be seen stays as it was, but a contradiction has to be seen each time.
func (m Memory) after(w Want, h Have, now time.Time) Memory {
	if h.Unknown != nil {
		m.contradictory = time.Time{}
		return m
	}
	since := func(first *time.Time, is bool) {
		switch {
		case !is:
			*first = time.Time{}
		case first.IsZero(), first.After(now): // the clock was set back
			*first = now
		}
	}
	since(&m.diskError, h.Domain == DomainBlocked)
	since(&m.processGone, h.Domain != DomainAbsent && h.Process == ProcessNone)
	since(&m.contradictory, h.contradictory())
	since(&m.exitUnknown, w.VM != nil && exitUnknown(w, h))
	return m
}

// age is for how long a state has lasted since it was first seen, 0 if it does not last.
func age(since, now time.Time) time.Duration {
	if since.IsZero() {
		return 0
	}
	return now.Sub(since)
}
