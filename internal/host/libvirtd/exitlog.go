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
	CausePanicked   Cause = "Panicked"   // its crashed domain was destroyed after that
	CauseDestroyed  Cause = "Destroyed"  // somebody asked libvirt to
	CauseSignalled  Cause = "Signalled"  // QEMU was asked to end by a signal of the host
	CauseTerminated Cause = "Terminated" // Berth's agent ended it, perhaps a former one
	CauseFailed     Cause = "Failed"     // QEMU ended by itself, was killed, or never came up
	CauseMoved      Cause = "Moved"      // migrated or saved
)

// Exit is a domain's end.
type Exit struct {
	Cause Cause
	Time  time.Time
	// Message is the end of what QEMU wrote into its log, if anything.
	Message string
}

// maxExits bounds what is remembered; an agent reads an end within moments.
const maxExits = 1024

// exitLog remembers how domains ended, by their events.
type exitLog struct {
	mu   sync.Mutex
	last map[string]Exit
}

// LastExit is the end of the domain's last life, if there was an event and no
// new life has begun. It is a hint: after a reconnect there may be none, and
// the log (ReadExit) knows more.
func (c *Client) LastExit(id string) (Exit, bool) {
	c.exits.mu.Lock()
	defer c.exits.mu.Unlock()
	exit, ok := c.exits.last[id]
	return exit, ok && exit.Cause != CauseUnknown
}

// ExitCause is how the domain of a guest that is gone ended: by LastExit or, if there was no event, by its log. It is false
// if neither says. What QEMU wrote last is its message, unless an event says that QEMU did not fail.
func (c *Client) ExitCause(id, name string) (Exit, bool) {
	exit, ok := c.LastExit(id)
	if ok && exit.Cause != CauseFailed {
		return exit, true
	}
	root, err := c.Root()
	if err != nil {
		return exit, ok
	}
	logged, err := ReadExit(root, name)
	if err != nil {
		return exit, ok
	}
	if ok {
		exit.Message = logged.Message
		return exit, true
	}
	return logged, logged.Cause != CauseUnknown
}

// handleEvents takes note of events until their connection ends.
func (c *Client) handleEvents(events <-chan any) {
	for e := range events {
		var id string
		switch e := e.(type) {
		case *golibvirt.DomainEventCallbackLifecycleMsg:
			id = uuidText(e.Msg.Dom.UUID)
			c.exits.lifecycle(id, golibvirt.DomainEventType(e.Msg.Event), e.Msg.Detail, time.Now())
			if golibvirt.DomainEventType(e.Msg.Event) == golibvirt.DomainEventStopped {
				c.resets.forget(id)
			}
		case *golibvirt.DomainEventCallbackRebootMsg:
			id = uuidText(e.Msg.Dom.UUID)
			if in, tell := c.resets.add(id, e.Msg.Dom.ID, time.Now()); tell {
				time.AfterFunc(in, func() { c.watcher.Changed(id) })
			}
			c.monitor.note(id)
			continue
		case *golibvirt.DomainEventCallbackAgentLifecycleMsg:
			id = uuidText(e.Dom.UUID)
		default:
			continue
		}
		c.monitor.note(id)
		c.watcher.Changed(id)
	}
}

// lifecycle follows a domain's end, which libvirt tells in up to three events:
// that the guest panicked, that QEMU shuts down and by whom, that it is gone.
func (s *exitLog) lifecycle(id string, event golibvirt.DomainEventType, detail int32, at time.Time) {
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
			return // its crashed domain is being destroyed
		}
		switch golibvirt.DomainEventShutdownDetailType(detail) {
		case golibvirt.DomainEventShutdownGuest:
			cause = CausePoweredOff
		case golibvirt.DomainEventShutdownHost:
			cause = CauseSignalled
		case golibvirt.DomainEventShutdownFinished:
		}
	case golibvirt.DomainEventStopped:
		cause = stoppedCause(golibvirt.DomainEventStoppedDetailType(detail), before)
	}
	if cause == CauseUnknown {
		return
	}
	if s.last == nil {
		s.last = map[string]Exit{}
	}
	if _, ok := s.last[id]; !ok && len(s.last) >= maxExits {
		for oldest := range s.last { // any will do: it is a hint
			delete(s.last, oldest)
			break
		}
	}
	s.last[id] = Exit{Cause: cause, Time: at}
}

// clearPanic forgets a panic of a domain that runs: libvirt's answer was wrong.
func (s *exitLog) clearPanic(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last[id].Cause == CausePanicked {
		delete(s.last, id)
	}
}

// stoppedCause is the cause of VIR_DOMAIN_EVENT_STOPPED; the event before may say more.
func stoppedCause(detail golibvirt.DomainEventStoppedDetailType, before Cause) Cause {
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
