package virtualmachine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/seed"
	"github.com/berth-dev/berth/internal/host/console"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
)

// createDomain has libvirt start QEMU, its vCPUs halted, once it is proven that there is none. What o says of the domain
// is then what was made.
func (r *Reconciler) createDomain(ctx context.Context, o *observed, m *machine.Machine, forBerth types.UID) error {
	found, err := r.Host.Processes.Find(string(m.UID))
	if err != nil {
		return fmt.Errorf("looking for QEMU: %w", err)
	}
	if len(found) > 0 {
		return fault.NewTransient(v1alpha1.ReasonStarting, fmt.Errorf("process %d of this guest is still there", found[0].PID))
	}
	user, err := r.user(m)
	if err != nil {
		return err
	}
	if err := r.Host.Store.RecordSeed(string(m.UID), m.Seed != nil); err != nil {
		return err
	}
	guest, err := r.describe(m, forBerth, user)
	if err != nil {
		return err
	}
	if err := r.makeFiles(m, o.session, &guest, user); err != nil {
		return err
	}
	if m.Group != 0 { // which is not the one that the host lets in
		if err := r.Host.Volumes.Grant(ctx, int(m.Group)); err != nil {
			return err
		}
	}
	xml, err := domain.XML(guest)
	if err != nil {
		return fmt.Errorf("describing the domain: %w", err)
	}
	if !r.starts.begin(m.UID, m.Namespace) {
		return fault.NewTransient(v1alpha1.ReasonStarting, fmt.Errorf("waiting for one of node %s's %d slots for starts, which other guests have", r.Node, maxStarts))
	}
	defer r.starts.end(m.Namespace)
	defer r.HoldBackPulls()() // QEMU's start takes a CPU, and somebody waits for it
	r.guests.rememberExit(m.UID, nil)
	if err := r.Host.Libvirt.CreatePaused(ctx, xml); err != nil {
		return err
	}
	o.Facts, err = domain.ParseFacts(xml)
	return err
}

// makeFiles makes what a guest has besides its disks, which is all that its QEMU opens or makes as user.
func (r *Reconciler) makeFiles(m *machine.Machine, in Container, guest *domain.Guest, user int) (err error) {
	uid := string(m.UID)
	if i := m.Ignition; i != nil {
		config, err := r.text(m, in, i.Config, i.SecretRef, berth.IgnitionPath)
		if err != nil {
			return err
		}
		if guest.Ignition, err = r.Host.Store.WriteIgnition(uid, config, user); err != nil {
			return err
		}
	}
	if m.Seed != nil {
		if guest.Seed, err = r.Host.Store.CreateSeed(uid, seed.Size, user); err != nil {
			return fmt.Errorf("making the seed: %w", err)
		}
	}
	if m.Tools {
		if guest.Tools, err = r.Host.Store.LinkTools(uid, r.Tools); err != nil {
			return err
		}
	}
	if m.Display != "" {
		guest.Display = &domain.Display{Type: m.Display}
		guest.Display.Socket, err = r.Host.Consoles.MakeDisplay(uid, user)
	}
	return err
}

// describe is a machine with what this host has for it: its hardware, and the paths of its files.
func (r *Reconciler) describe(m *machine.Machine, forBerth types.UID, user int) (domain.Guest, error) {
	uid := string(m.UID)
	hardware, err := r.hardware(uid)
	if err != nil {
		return domain.Guest{}, err
	}
	g := domain.Guest{
		UUID: uid, Name: berth.DomainName(m.Namespace, m.Name),
		Identity:     domain.Identity{Namespace: m.Namespace, Name: m.Name, VM: uid, Berth: string(forBerth), Record: m.Record},
		Hardware:     hardware,
		Acceleration: m.Acceleration, TranslationCache: m.TranslationCache,
		Partition: r.Partition(string(forBerth)),
		CPU:       m.CPU, Memory: m.Memory,
		Console:   r.Host.Consoles.Path(uid, console.Serial),
		GuestPort: r.Host.Consoles.Path(uid, console.GuestPort), ExitPort: r.Host.Consoles.Path(uid, console.ExitPort),
		UID: uint32(user), //nolint:gosec // a uid
		GID: r.group(m, user),
	}
	if len(m.NICs) > 0 {
		g.NIC = &domain.NIC{Tap: m.NICs[0].Tap, MAC: berth.MAC(m.UID, 0)}
	}
	made, err := r.Host.Store.Disks(uid)
	if err != nil {
		return g, fmt.Errorf("reading disks: %w", err)
	}
	for _, want := range m.Disks {
		disk, err := r.disk(uid, want, made)
		if err != nil {
			return g, err
		}
		g.Disks = append(g.Disks, disk)
	}
	if k := m.Kernel; k != nil {
		kernel, err := r.Host.Store.Image(contentOf(k.Image))
		if err != nil {
			return g, fmt.Errorf("kernel image %s: %w", k.Image.Reference, err)
		}
		if kernel.BootSize > m.Memory {
			return g, fault.NewUser(v1alpha1.ReasonImageTooLarge, fmt.Errorf(
				"kernel and initrd of %s have %d MiB, and the guest's memory, in which both are at boot, has %d: give it more memory, or make them smaller",
				k.Image.Reference, kernel.BootSize>>20, m.Memory>>20))
		}
		g.Kernel = &domain.Kernel{Path: kernel.KernelPath(), Initrd: kernel.InitrdPath(), CommandLine: k.CommandLine}
	}
	return g, nil
}

// hardware is what the VM keeps for life. At its first start on this node that is decided and recorded, before libvirt
// hears of it.
func (r *Reconciler) hardware(uid string) (domain.Hardware, error) {
	facts, known, err := r.Host.Facts.Facts()
	if !known {
		return domain.Hardware{}, fault.NewTransient(v1alpha1.ReasonStarting, errors.New("libvirt is asked which machine types this host has"))
	}
	if err != nil {
		return domain.Hardware{}, err
	}
	recorded, err := r.Host.Store.Hardware(uid, store.Hardware{Layout: domain.NewestLayout, Machine: facts.Q35})
	if err != nil {
		return domain.Hardware{}, err
	}
	h := domain.Hardware(recorded)
	return h, provides(r.Node, facts, h)
}

// provides tells why a host cannot give a guest the hardware that its VM was first started with.
func provides(node string, facts libvirtd.HostFacts, h domain.Hardware) error {
	switch {
	case !h.HasLayout():
		return fault.NewUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf(
			"the VM's devices are in layout %d, which Berth on node %s does not have: install a version of Berth that has it", h.Layout, node))
	case !slices.Contains(facts.MachineTypes, h.Machine):
		return fault.NewUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf(
			"the VM has QEMU's machine type %q, which QEMU %s on node %s does not have: install a QEMU that has it", h.Machine, facts.QEMUVersion, node))
	}
	return nil
}

const (
	// maxStarts is how many domains are started at once: as many as libvirtd takes calls for, and few enough that other
	// guests have workers left. So many commits are made at once, too, each of which takes some MiB of memory.
	maxStarts = 4
	// startTurn is how long a guest that waits keeps others from going first. Longer than the backoff of its loop.
	startTurn = 15 * time.Second
)

// starts are the domains being started, or the commits being made. Namespaces share them: one whose guests start slowly has a slot less as soon as
// another's guest waits.
type starts struct {
	wake func(vm types.UID)
	now  func() time.Time

	mu      sync.Mutex
	running map[string]int // by namespace
	waiting []waitingStart // in order
}

type waitingStart struct {
	vm        types.UID
	namespace string
	until     time.Time
}

// begin takes a slot, which end gives back. If there is none for this guest, it waits, and is woken when there is.
func (s *starts) begin(vm types.UID, namespace string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	s.waiting = slices.DeleteFunc(s.waiting, func(w waitingStart) bool { return !now.Before(w.until) }) // they did not come back
	at := slices.IndexFunc(s.waiting, func(w waitingStart) bool { return w.vm == vm })
	total := 0
	for _, n := range s.running {
		total += n
	}
	if next := s.next(); total < maxStarts && (next == nil || s.running[namespace] <= s.running[next.namespace]) {
		s.running[namespace]++
		if at >= 0 {
			s.waiting = slices.Delete(s.waiting, at, at+1)
		}
		if total+1 < maxStarts {
			s.wakeNext()
		}
		return true
	}
	if at < 0 {
		at, s.waiting = len(s.waiting), append(s.waiting, waitingStart{vm: vm, namespace: namespace})
	}
	s.waiting[at].until = now.Add(startTurn)
	return false
}

// end gives a slot back, and wakes the guest whose turn it is.
func (s *starts) end(namespace string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running[namespace]--; s.running[namespace] == 0 {
		delete(s.running, namespace)
	}
	s.wakeNext()
}

func (s *starts) wakeNext() {
	if next := s.next(); next != nil {
		s.wake(next.vm)
	}
}

// next is the guest whose turn it is: of those in the namespaces with the fewest slots the one that waits for longest.
func (s *starts) next() (next *waitingStart) {
	for i, w := range s.waiting {
		if next == nil || s.running[w.namespace] < s.running[next.namespace] {
			next = &s.waiting[i]
		}
	}
	return next
}
