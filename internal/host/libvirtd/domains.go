package libvirtd

import (
	"cmp"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"time"

	golibvirt "github.com/digitalocean/go-libvirt"
	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// errOtherDomain is the error for an answer about a domain that nobody asked about.
var errOtherDomain = errors.New("libvirt answered about another domain")

// State is what libvirt says a domain does.
type State string

// The states. A domain that libvirt does not know has none.
const (
	Running      State = "Running"
	Paused       State = "Paused"
	ShuttingDown State = "ShuttingDown"
	Shutoff      State = "Shutoff" // a foreign domain that is only defined
	Crashed      State = "Crashed" // the guest panicked, its domain is kept
	PMSuspended  State = "Suspended"
	OtherState   State = "Other"
)

var states = map[golibvirt.DomainState]State{
	golibvirt.DomainRunning:     Running,
	golibvirt.DomainBlocked:     Running,
	golibvirt.DomainPaused:      Paused,
	golibvirt.DomainShutdown:    ShuttingDown,
	golibvirt.DomainShutoff:     Shutoff,
	golibvirt.DomainCrashed:     Crashed,
	golibvirt.DomainPmsuspended: PMSuspended,
}

// Pause says why a domain is Paused, as far as anybody has to tell one pause from another.
type Pause string

// The pauses.
const (
	PausedByUser    Pause = "User" // by Suspend, or CreatePaused and not resumed yet
	PausedOnIOError Pause = "IOError"
	PausedOther     Pause = "Other" // for a moment, by libvirt itself
)

var pauses = map[golibvirt.DomainPausedReason]Pause{
	golibvirt.DomainPausedUser:    PausedByUser,
	golibvirt.DomainPausedIoerror: PausedOnIOError,
}

// Domain is what libvirt knows of a domain. The zero value means that it surely knows none.
type Domain struct {
	Exists bool
	Name   string
	// ID tells one life of a domain from the next; -1 if it does not run.
	ID    int32
	State State
	// Pause is set while State is Paused.
	Pause  Pause
	Resets Resets
	// XML is the live description.
	XML string
}

// Domain looks a domain up by its UUID.
func (c *Client) Domain(ctx context.Context, id string) (Domain, error) {
	var found Domain
	err := c.withDomain(ctx, c.queries, id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		state, reason, err := l.DomainGetState(d, 0)
		if err != nil {
			return err
		}
		doc, err := l.DomainGetXMLDesc(d, 0)
		if err != nil {
			return err
		}
		found = c.domainOf(d, state, reason)
		found.XML = doc
		switch found.State { //nolint:exhaustive // the others say nothing of a panic
		case Crashed: // its event may have come before we listened; its destruction, which follows, tells nothing of it
			c.exits.lifecycle(id, golibvirt.DomainEventCrashed, int32(golibvirt.DomainEventCrashedPanicked), time.Now())
		case Running, Paused:
			c.exits.clearPanic(id)
		}
		return nil
	})
	if isNoDomain(err) {
		return Domain{}, nil
	}
	if err != nil {
		return Domain{}, fmt.Errorf("looking up domain %s: %w", id, classify(err))
	}
	return found, nil
}

func (c *Client) domainOf(d golibvirt.Domain, state, reason int32) Domain {
	found := Domain{Exists: true, Name: d.Name, ID: d.ID, Resets: c.resets.of(uuidText(d.UUID), d.ID)}
	found.State = cmp.Or(states[golibvirt.DomainState(state)], OtherState)
	if found.State == Paused {
		found.Pause = cmp.Or(pauses[golibvirt.DomainPausedReason(reason)], PausedOther)
	}
	return found
}

// States returns what every domain does, foreign ones and those that do not run included, by its UUID, in one question. Their
// XML is left out.
func (c *Client) States(ctx context.Context) (map[string]Domain, error) {
	records, err := ask(ctx, c.queries, func(l *golibvirt.Libvirt) ([]golibvirt.DomainStatsRecord, error) {
		return l.ConnectGetAllDomainStats(nil, uint32(golibvirt.DomainStatsState), uint32(golibvirt.ConnectGetAllDomainsStatsNowait))
	})
	if err != nil {
		return nil, fmt.Errorf("querying the states of all domains: %w", classify(err))
	}
	all := make(map[string]Domain, len(records))
	for _, r := range records {
		values := map[string]int32{}
		for _, p := range r.Params { // https://libvirt.org/html/libvirt-libvirt-domain.html#virConnectGetAllDomainStats
			values[p.Field], _ = p.Value.I.(int32)
		}
		all[uuidText(r.Dom.UUID)] = c.domainOf(r.Dom, values["state.state"], values["state.reason"])
	}
	return all, nil
}

// CreatePaused starts a transient domain with its CPUs halted. That it exists already, paused or not, is no error. When the
// deadline is missed, the domain may still come to be.
func (c *Client) CreatePaused(ctx context.Context, doc string) error {
	var d struct {
		Type string `xml:"type,attr"`
		Name string `xml:"name"`
		UUID string `xml:"uuid"`
	}
	if err := xml.Unmarshal([]byte(doc), &d); err != nil {
		return fmt.Errorf("parsing the domain's XML: %w", err)
	}
	if d.Name == "" || d.UUID == "" {
		return errors.New("the domain's XML has no name or no uuid")
	}
	var err error
	if d.Type == "kvm" {
		err = c.kvmUsable()
	}
	if err == nil {
		err = c.starts.call(ctx, func(l *golibvirt.Libvirt) error {
			_, err := l.DomainCreateXML(doc, golibvirt.DomainStartPaused)
			return err
		})
	}
	if _, refused := errors.AsType[golibvirt.Error](err); refused {
		return c.explainStartFailure(ctx, d.Type, d.Name, d.UUID, err)
	}
	return fault.Doing(err, "starting domain %s", d.Name)
}

// explainStartFailure finds out why a domain was not started. libvirt has the same code for many causes, so it is asked for each.
func (c *Client) explainStartFailure(ctx context.Context, domainType, name, id string, startErr error) error {
	holder, err := ask(ctx, c.queries, func(l *golibvirt.Libvirt) (string, error) {
		d, err := l.DomainLookupByName(name)
		if err == nil && d.Name != name {
			err = errOtherDomain
		}
		return uuidText(d.UUID), err
	})
	switch {
	case holder == id:
		return nil
	case holder != "":
		return fault.NewUser(v1alpha1.ReasonDomainNameTaken, fmt.Errorf("the host has another domain named %s, with UUID %s: rename or undefine it with virsh, or give the VirtualMachine another name", name, holder))
	case !isNoDomain(err):
		return fmt.Errorf("starting domain %s: %w", name, classify(err))
	}
	if domainType == "kvm" {
		if _, err := c.domainCaps(ctx, domainType); err != nil {
			return fmt.Errorf("starting domain %s: %w", name, err)
		}
	}
	return fmt.Errorf("starting domain %s: %w", name, classify(startErr))
}

// Resume lets a domain's CPUs run. That they run already is no error; that there is no domain is.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.idempotent(ctx, "resuming", id, (*golibvirt.Libvirt).DomainResume,
		func(d Domain) bool { return d.State == Running })
}

// Suspend halts a domain's CPUs. That they are halted already is no error; that there is no domain is.
func (c *Client) Suspend(ctx context.Context, id string) error {
	return c.idempotent(ctx, "suspending", id, (*golibvirt.Libvirt).DomainSuspend,
		func(d Domain) bool { return d.State == Paused })
}

// Shutdown asks the guest by ACPI to power itself off, and does not wait until it does. That there is no domain is no error.
func (c *Client) Shutdown(ctx context.Context, id string) error {
	return c.idempotent(ctx, "shutting down", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainShutdownFlags(d, golibvirt.DomainShutdownAcpiPowerBtn)
	}, func(d Domain) bool { return gone(d) || d.State == ShuttingDown })
}

// Destroy ends a domain: libvirtd sends QEMU a SIGTERM, on which it closes its disks, and a SIGKILL if it is still there
// after 10 s. That there is no domain is no error.
func (c *Client) Destroy(ctx context.Context, id string) error {
	return c.idempotent(ctx, "destroying", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainDestroyFlags(d, golibvirt.DomainDestroyDefault)
	}, gone)
}

// Reset resets a domain as its reset button would: its guest loses what it has not written. That there is no domain is an
// error.
func (c *Client) Reset(ctx context.Context, id string) error {
	return c.act(ctx, "resetting", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error { return l.DomainReset(d, 0) })
}

// InjectNMI sends a non-maskable interrupt to each vCPU of a domain. What its guest makes of it is the guest's: a dump of
// its kernel, say, or nothing. That there is no domain is an error.
func (c *Client) InjectNMI(ctx context.Context, id string) error {
	return c.act(ctx, "injecting an NMI into", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error { return l.DomainInjectNmi(d, 0) })
}

// ResizeDisk tells QEMU that the disk at path has size bytes now; a raw or qcow2 file it makes as long. QEMU and libvirt
// shrink a disk without a word: whoever calls has to know that it grows. That there is no domain is an error.
func (c *Client) ResizeDisk(ctx context.Context, id, path string, size int64) error {
	return c.act(ctx, "resizing disk "+path+" of", id, func(l *golibvirt.Libvirt, d golibvirt.Domain) error {
		return l.DomainBlockResize(d, path, uint64(size), golibvirt.DomainBlockResizeBytes) //nolint:gosec // no size is negative
	})
}

// act does what is done anew each time it is asked for.
func (c *Client) act(ctx context.Context, doing, id string, op func(*golibvirt.Libvirt, golibvirt.Domain) error) error {
	return fault.Doing(classify(c.withDomain(ctx, c.control, id, op)), "%s domain %s", doing, id)
}

func gone(d Domain) bool { return !d.Exists || d.State == Shutoff }

// idempotent does op. If libvirt refuses, and the domain is already as op should have made it, that is no error: libvirt
// calls it one, under a code of many meanings.
func (c *Client) idempotent(ctx context.Context, doing, id string, op func(*golibvirt.Libvirt, golibvirt.Domain) error, done func(Domain) bool) error {
	err := c.withDomain(ctx, c.control, id, op)
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[golibvirt.Error](err); ok {
		if now, lookErr := c.Domain(ctx, id); lookErr == nil && done(now) {
			return nil
		}
	}
	return fmt.Errorf("%s domain %s: %w", doing, id, classify(err))
}

// withDomain calls op with the domain of this UUID.
func (c *Client) withDomain(ctx context.Context, pool *callPool, id string, op func(*golibvirt.Libvirt, golibvirt.Domain) error) error {
	raw, err := uuid.Parse(id)
	if err != nil {
		return fmt.Errorf("reading domain's UUID: %w", err)
	}
	return pool.call(ctx, func(l *golibvirt.Libvirt) error {
		d, err := l.DomainLookupByUUID(golibvirt.UUID(raw))
		switch {
		case err != nil:
			return err
		case d.UUID != golibvirt.UUID(raw): // what is asked of that one next tells nothing of this one, not even that it is gone
			return errOtherDomain
		}
		return op(l, d)
	})
}

func uuidText(id golibvirt.UUID) string { return uuid.UUID(id).String() }
