package libvirtd

import (
	"sync"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
)

// Cause is why a domain ended.
type Cause string

// The causes.
const (
	CauseUnknown    Cause = ""
	CausePoweredOff Cause = "PoweredOff" // the guest did it
	CausePanicked   Cause = "Panicked"   // its corpse was destroyed after that
	CauseDestroyed  Cause = "Destroyed"  // somebody asked libvirt to
	CauseSignalled  Cause = "Signalled"  // QEMU was asked to end by a signal of the host
	CauseFailed     Cause = "Failed"     // QEMU ended by itself, was killed, or never came up
	CauseMoved      Cause = "Moved"      // migrated or saved
)

// Stop is a domain's end.
type Stop struct {
	Cause Cause
	Time  time.Time
	// Message is the end of QEMU's own words, if the log had any.
	Message string
}

// maxStops bounds what is remembered; an agent looks at an end within moments.
const maxStops = 1024

// stops remembers the ends that events told of.
type stops struct {
	mu   sync.Mutex
	last map[string]Stop
}

// LastStop is the end of the domain's last life, if an event told of it and no
// new life has begun. It is a hint: after a reconnect there may be none, and
// the log (ReadStop) knows more.
func (c *Client) LastStop(id string) (Stop, bool) {
	c.stops.mu.Lock()
	defer c.stops.mu.Unlock()
	stop, ok := c.stops.last[id]
	return stop, ok && stop.Cause != CauseUnknown
}

// drain takes note of events until their connection ends.
func (c *Client) drain(events <-chan any) {
	for e := range events {
		var id string
		switch e := e.(type) {
		case *golibvirt.DomainEventCallbackLifecycleMsg:
			id = uuidText(e.Msg.Dom.UUID)
			c.stops.lifecycle(id, golibvirt.DomainEventType(e.Msg.Event), e.Msg.Detail, time.Now())
		case *golibvirt.DomainEventCallbackAgentLifecycleMsg:
			id = uuidText(e.Dom.UUID)
		default:
			continue
		}
		c.canary.hear(id)
		c.watcher.Changed(id)
	}
}

// lifecycle follows a domain's end, which libvirt tells in up to three events:
// that the guest panicked, that QEMU shuts down and by whom, that it is gone.
func (s *stops) lifecycle(id string, event golibvirt.DomainEventType, detail int32, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.last[id].Cause
	cause := before
	switch event { //nolint:exhaustive // the others are not about ends
	case golibvirt.DomainEventStarted, golibvirt.DomainEventUndefined:
		delete(s.last, id)
		return
	case golibvirt.DomainEventCrashed:
		if golibvirt.DomainEventCrashedDetailType(detail) == golibvirt.DomainEventCrashedPanicked {
			cause = CausePanicked
		}
	case golibvirt.DomainEventShutdown:
		if before == CausePanicked {
			return // its corpse is on its way out
		}
		switch golibvirt.DomainEventShutdownDetailType(detail) {
		case golibvirt.DomainEventShutdownGuest:
			cause = CausePoweredOff
		case golibvirt.DomainEventShutdownHost:
			cause = CauseSignalled
		case golibvirt.DomainEventShutdownFinished:
		}
	case golibvirt.DomainEventStopped:
		cause = stopped(golibvirt.DomainEventStoppedDetailType(detail), before)
	}
	if cause == CauseUnknown {
		return
	}
	if s.last == nil {
		s.last = map[string]Stop{}
	}
	if _, ok := s.last[id]; !ok && len(s.last) >= maxStops {
		for oldest := range s.last { // any will do: it is a hint
			delete(s.last, oldest)
			break
		}
	}
	s.last[id] = Stop{Cause: cause, Time: at}
}

// alive forgets that a domain panicked which has not: libvirt's answer was wrong.
func (s *stops) alive(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last[id].Cause == CausePanicked {
		delete(s.last, id)
	}
}

// stopped is the cause of an end of which the event before has perhaps told more.
func stopped(detail golibvirt.DomainEventStoppedDetailType, before Cause) Cause {
	if before == CausePanicked {
		return before
	}
	switch detail {
	case golibvirt.DomainEventStoppedShutdown:
		if before == CauseSignalled {
			return before
		}
		return CausePoweredOff
	case golibvirt.DomainEventStoppedDestroyed:
		return CauseDestroyed
	case golibvirt.DomainEventStoppedMigrated, golibvirt.DomainEventStoppedSaved:
		return CauseMoved
	case golibvirt.DomainEventStoppedCrashed, golibvirt.DomainEventStoppedFailed:
		return CauseFailed
	case golibvirt.DomainEventStoppedFromSnapshot, golibvirt.DomainEventStoppedRecreated:
		return CauseUnknown
	}
	return CauseUnknown
}
