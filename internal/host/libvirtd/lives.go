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

// maxExits bounds of how many domains is remembered what events told; an agent reads an end within moments.
const maxExits = 1024

// exitLog remembers how domains ended, by their events.
type exitLog struct {
	mu   sync.Mutex
	last map[string]Exit
}

// LastExit is the end of the domain's last life, if there was an event and no new life has begun. It is a hint: after a
// reconnect there may be none, and the log (ReadExit) knows more.
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
	if err == nil && ok {
		exit.Message = logged.Message
	} else if err == nil {
		exit = logged
	}
	return exit, exit.Cause != CauseUnknown
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
		case *golibvirt.DomainEventCallbackDeviceRemovedMsg:
			id = uuidText(e.Msg.Dom.UUID)
		case *golibvirt.DomainEventCallbackDeviceRemovalFailedMsg:
			id = uuidText(e.Dom.UUID)
		default:
			continue
		}
		c.monitor.note(id)
		c.watcher.Changed(id)
	}
}

// ending is an event about a domain's end, with its detail.
type ending struct {
	event  golibvirt.DomainEventType
	detail int32
}

var causes = map[ending]Cause{
	{golibvirt.DomainEventCrashed, int32(golibvirt.DomainEventCrashedPanicked)}:  CausePanicked,
	{golibvirt.DomainEventShutdown, int32(golibvirt.DomainEventShutdownGuest)}:   CausePoweredOff,
	{golibvirt.DomainEventShutdown, int32(golibvirt.DomainEventShutdownHost)}:    CauseSignalled,
	{golibvirt.DomainEventStopped, int32(golibvirt.DomainEventStoppedShutdown)}:  CausePoweredOff,
	{golibvirt.DomainEventStopped, int32(golibvirt.DomainEventStoppedDestroyed)}: CauseDestroyed,
	{golibvirt.DomainEventStopped, int32(golibvirt.DomainEventStoppedCrashed)}:   CauseFailed,
	{golibvirt.DomainEventStopped, int32(golibvirt.DomainEventStoppedFailed)}:    CauseFailed,
	{golibvirt.DomainEventStopped, int32(golibvirt.DomainEventStoppedMigrated)}:  CauseMoved,
	{golibvirt.DomainEventStopped, int32(golibvirt.DomainEventStoppedSaved)}:     CauseMoved,
}

// lifecycle follows a domain's end, which libvirt tells in up to three events:
// that the guest panicked, that QEMU shuts down and by whom, that it is gone.
func (s *exitLog) lifecycle(id string, event golibvirt.DomainEventType, detail int32, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.last[id]
	cause, tells := causes[ending{event, detail}]
	switch {
	case event == golibvirt.DomainEventStarted || event == golibvirt.DomainEventUndefined:
		delete(s.last, id)
		return
	case !tells || before.Cause == CausePanicked && event == golibvirt.DomainEventShutdown: // its crashed domain is being destroyed
		return
	case before.Cause == CausePanicked, before.Cause == CauseSignalled && event == golibvirt.DomainEventStopped && cause == CausePoweredOff:
		// The event before says more.
		cause = before.Cause
	}
	remember(&s.last, id, Exit{Cause: cause, Time: at})
}

// remember keeps what events told of a domain. Of those before any may make room: it is a hint, and most are forgotten in time.
func remember[T any](all *map[string]T, id string, what T) {
	if *all == nil {
		*all = map[string]T{}
	}
	for other := range *all {
		if _, known := (*all)[id]; known || len(*all) < maxExits {
			break
		}
		delete(*all, other)
	}
	(*all)[id] = what
}

// clearPanic forgets a panic of a domain that runs: libvirt's answer was wrong.
func (s *exitLog) clearPanic(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last[id].Cause == CausePanicked {
		delete(s.last, id)
	}
}

// Resets are how often a domain was reset (VIR_DOMAIN_EVENT_ID_REBOOT) in its present life, by its guest or from outside, as
// far as this Client was connected: libvirt counts none itself.
type Resets struct {
	Count int32
	// Latest are the times of the latest ones, the newest first; zero for those that were not.
	Latest [5]time.Time
}

// resetsTold is how often resets of one domain are told at most. Those between are told together, so long after the last.
const resetsTold = 4 * time.Second

// oneReset is within what time several events are one reset: a kernel that reboots asks for it by one way after the other,
// and QEMU tells of each.
const oneReset = 2 * time.Second

// resetLog counts resets by the domain's UUID.
type resetLog struct {
	mu   sync.Mutex
	byID map[string]*lifeResets
}

type lifeResets struct {
	life int32     // libvirt's ID of the domain, another one in each life
	told time.Time // or about to be
	Resets
}

// add counts a reset, and says whether to tell of it, and in how long: a guest in a loop resets many times a second.
func (l *resetLog) add(uuid string, life int32, at time.Time) (in time.Duration, tell bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.byID[uuid]
	if r == nil || r.life != life {
		r = &lifeResets{life: life}
		remember(&l.byID, uuid, r)
	}
	if since := at.Sub(r.Latest[0]); since >= 0 && since < oneReset {
		return 0, false
	}
	r.Count++
	copy(r.Latest[1:], r.Latest[:])
	r.Latest[0] = at
	if at.Before(r.told) {
		return 0, false
	}
	in = max(0, r.told.Add(resetsTold).Sub(at))
	r.told = at.Add(in)
	return in, true
}

// of returns the resets of a domain in this life.
func (l *resetLog) of(uuid string, life int32) Resets {
	l.mu.Lock()
	defer l.mu.Unlock()
	if r := l.byID[uuid]; r != nil && r.life == life {
		return r.Resets
	}
	return Resets{}
}

// forget is called at the end of a domain's life.
func (l *resetLog) forget(uuid string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.byID, uuid)
}
