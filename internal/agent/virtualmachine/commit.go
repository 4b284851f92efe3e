package virtualmachine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/console"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/qga"
)

const (
	// freezeTimeout is how long a guest may take until it holds its writes, thawTimeout until it lets them go on, which is
	// asked while the guest is cared for.
	freezeTimeout = 10 * time.Second
	thawTimeout   = 3 * time.Second
	backupPoll    = time.Second // how often QEMU is asked how far it is
)

// commit makes an image of a disk in the background. A guest has one at a time.
type commit struct {
	berth.Commit
	image, namespace string

	porter types.UID
	in     Container
	keys   Keys
	stop   context.CancelFunc

	freezesNothing bool // there is no need to have the guest write on

	reading atomic.Bool                // a QEMU of ours has the disk of a guest that does not run, which has to wait
	state   atomic.Pointer[plan.Image] // its Digest is a VirtualMachineCommitStatus, as JSON
}

func (c *commit) tell(format string, args ...any) {
	c.state.Store(&plan.Image{State: plan.ImagePulling, Progress: fmt.Sprintf(format, args...)})
}

// carryCommit begins the commit that a porter is for, once no other of its guest goes on, and tells how far it is.
func (r *Reconciler) carryCommit(porter types.UID, namespace string, e berth.Errand, in Container, keys Keys) plan.Image {
	ctx, stop := context.WithCancel(r.life)
	c := &commit{Commit: *e.Commit, image: e.Image, namespace: namespace, porter: porter, in: in, keys: keys, stop: stop}
	c.tell("it begins")
	other, goesOn := r.commits.LoadOrStore(e.Commit.VM, c)
	if !goesOn {
		go r.runCommit(ctx, c)
		return *c.state.Load()
	}
	stop()
	c = other.(*commit) //nolint:forcetypeassert // nothing else is in there
	if c.porter != porter {
		return plan.Image{State: plan.ImagePulling, Progress: "another commit of the VirtualMachine goes on"}
	}
	return *c.state.Load()
}

// dropCommit ends the commit of a porter, and forgets it once it has ended.
func (r *Reconciler) dropCommit(porter types.UID) {
	for vm, c := range r.commits.Range {
		if c := c.(*commit); c.porter == porter { //nolint:forcetypeassert // nothing else is in there
			c.stop()
			if c.state.Load().State != plan.ImagePulling {
				r.commits.Delete(vm)
				r.Enqueue(c.VM) // what is left of it is cleaned up now
			}
		}
	}
}

// awaited are reasons for which a commit begins anew: libvirtd, or we, have just begun, or others have what it needs.
var awaited = []v1alpha1.Reason{v1alpha1.ReasonLibvirtUnreachable, v1alpha1.ReasonLibvirtBusy, v1alpha1.ReasonStarting, v1alpha1.ReasonCommitting}

func (r *Reconciler) runCommit(ctx context.Context, c *commit) {
	made, err := r.commit(ctx, c)
	for slices.Contains(awaited, fault.ReasonOf(err)) && ctx.Err() == nil {
		c.tell("it begins anew: %v", err)
		select {
		case <-ctx.Done():
		case <-time.After(backupPoll):
			made, err = r.commit(ctx, c)
		}
	}
	message, encodeErr := json.Marshal(made)
	if err := r.endCommit(r.life, c.VM, !c.freezesNothing); err != nil { //nolint:contextcheck // whoever has given it up
		logUnclean(c.VM, err)
	}
	if err = errors.Join(err, encodeErr); err != nil {
		c.state.Store(&plan.Image{State: plan.ImageFailed, Err: err})
	} else {
		c.state.Store(&plan.Image{State: plan.ImageReady, Digest: string(message)})
	}
	if ctx.Err() != nil { // its porter is gone
		r.dropCommit(c.porter)
	}
	r.Enqueue(c.porter)
	r.Enqueue(c.VM)
}

// commit copies the disk to a file on the node, and pushes that.
func (r *Reconciler) commit(ctx context.Context, c *commit) (made v1alpha1.VirtualMachineCommitStatus, err error) {
	ref, err := image.ParseReference(c.image)
	if err != nil {
		return made, err
	}
	keys, err := c.keys()
	if err != nil {
		return made, err
	}
	if !r.making.begin(c.VM, c.namespace) {
		return made, fault.NewTransient(v1alpha1.ReasonCommitting, fmt.Errorf("waiting for one of node %s's %d slots for commits", r.Node, maxStarts))
	}
	defer r.making.end(c.namespace)
	err = r.endCommit(ctx, c.VM, true) // of an agent before this one; a guest agent that does not answer is asked again at the end
	if err != nil && fault.ReasonOf(err) != v1alpha1.ReasonGuestAgentNotConnected {
		return made, err
	}
	c.freezesNothing = err == nil && c.Quiesce == v1alpha1.QuiesceNever
	file, err := r.copyDisk(ctx, c, &made)
	if err != nil {
		return made, err
	}
	disk, err := os.OpenFile(file, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return made, fmt.Errorf("opening the copy: %w", err)
	}
	defer disk.Close()
	c.tell("compressing the copy")
	digest, size, err := r.Host.Push(ctx, ref, keys, disk, made.TakenAt.Time, func(bytes, of int64) {
		c.tell("pushing, %d of %d MiB", bytes>>20, of>>20)
	})
	made.Digest, made.Size = digest, resource.NewQuantity(size, resource.BinarySI)
	return made, err
}

func nothing(format string, args ...any) error {
	return fault.NewUser(v1alpha1.ReasonNothingToCommit, fmt.Errorf(format, args...))
}

// copyDisk copies the disk as it is, and returns the path of the copy. QEMU does it: the guest's, or if it does not run, one of
// its own.
func (r *Reconciler) copyDisk(ctx context.Context, c *commit, made *v1alpha1.VirtualMachineCommitStatus) (file string, err error) {
	vm, err := r.VirtualMachine(ctx, c.VM)
	if err != nil {
		return "", err
	}
	if vm == nil {
		return "", nothing("the VirtualMachine does not exist any more")
	}
	m, err := machine.Of(vm, r.Guests)
	if err != nil {
		return "", err
	}
	m.Disks = slices.DeleteFunc(m.Disks, func(d machine.Disk) bool { return d.Name != c.Disk || d.CDROM })
	if len(m.Disks) == 0 {
		return "", nothing("VirtualMachine %s has no disk %s, or it is a CD-ROM: correct diskName", vm.Name, c.Disk)
	}
	user, err := r.user(&m)
	if err != nil {
		return "", err
	}
	id := string(m.UID)
	from, err := r.Host.Libvirt.Domain(ctx, id)
	if err != nil {
		return "", err
	}
	size, needs, err := r.sizeOf(id, m.Disks[0], from.Exists)
	if err != nil {
		return "", err
	}
	if file, err = r.Host.Store.CreateCommit(id, size, needs, user); err != nil {
		return "", err
	}
	runs, facts := from.Exists, domain.Facts{}
	if runs {
		facts, err = domain.ParseFacts(from.XML)
	} else {
		c.reading.Store(true)
		id = readerOf(m.UID)
		defer func() { // also of a VM whose directory is gone, with which endCommit has nothing to end
			err = errors.Join(err, r.Host.Libvirt.Destroy(r.life, id)) // whoever has given it up
			c.reading.Store(false)
			r.Enqueue(m.UID) // which may start now
		}()
		facts, err = r.startReader(ctx, c, &m, user)
	}
	if err != nil {
		return "", err
	}
	live := slices.IndexFunc(facts.Disks, func(d domain.LiveDisk) bool { return d.Name == c.Disk })
	if live < 0 {
		return "", nothing("the guest does not have disk %s yet: restart it, and create another commit", c.Disk)
	}
	doc, err := domain.BackupXML(facts.Disks[live], file)
	if err != nil {
		return "", err
	}
	begin := func() error {
		made.TakenAt = new(metav1.Now())
		return r.Host.Backups.BeginBackup(ctx, id, doc)
	}
	quiesced := !runs
	if quiesced || c.Quiesce == v1alpha1.QuiesceNever {
		err = begin()
	} else {
		quiesced, err = r.quiesced(c, &facts, begin) //nolint:contextcheck // a thaw is not given up
	}
	made.Quiesced = &quiesced
	for goesOn := true; err == nil && goesOn; {
		var done, total uint64
		if done, total, goesOn, err = r.Host.Backups.BackupProgress(ctx, id); goesOn {
			c.tell("copying the disk, %d of %d MiB", done>>20, total>>20)
			select {
			case <-ctx.Done():
				err = ctx.Err()
			case <-time.After(backupPoll):
			}
		}
	}
	return file, err
}

// sizeOf is how large a disk is for its guest, and the most that a copy of it takes, in bytes.
func (r *Reconciler) sizeOf(uid string, d machine.Disk, runs bool) (size, needs int64, err error) {
	if d.Claim != nil && runs {
		v, err := r.attachedVolume(uid, d.Name)
		return v.Size, v.Size, err
	}
	made, err := r.Host.Store.Disks(uid)
	if err != nil {
		return 0, 0, fmt.Errorf("reading disks: %w", err)
	}
	for _, have := range made {
		if have.Name == d.Name && d.Claim == nil {
			return have.VirtualSize, have.Allocated + have.Base.Allocated, nil
		}
	}
	return 0, 0, nothing("disk %s is not on node %s: start the guest, and create another commit", d.Name, r.Node)
}

// startReader starts a QEMU that has nothing but the disk of a guest that does not run, and runs nothing, in the porter's cgroup.
// The disk is locked, and the guest not started meanwhile.
func (r *Reconciler) startReader(ctx context.Context, c *commit, m *machine.Machine, user int) (facts domain.Facts, err error) {
	m.NICs, m.Kernel, m.CPU.Sockets, m.CPU.Cores, m.CPU.Threads, m.Memory = nil, nil, 1, 1, 1, berth.ReaderMemory
	g, err := r.describe(m, c.porter, user)
	if err != nil {
		return facts, err
	}
	g.UUID, g.Name = readerOf(m.UID), "berth-commit-"+string(m.UID)
	g.Console = r.Host.Consoles.Path(g.UUID, console.Serial)
	g.GuestPort, g.ExitPort = r.Host.Consoles.Path(g.UUID, console.GuestPort), r.Host.Consoles.Path(g.UUID, console.ExitPort)
	doc, err := domain.XML(g)
	if err != nil {
		return facts, fmt.Errorf("describing the domain: %w", err)
	}
	if err := r.Host.Libvirt.CreatePaused(ctx, doc); err != nil {
		return facts, err
	}
	qemus, err := r.Host.Processes.Find(g.UUID)
	if err == nil {
		err = r.Host.Cgroups.Place(c.in.Cgroup(), pidsOf(qemus)...)
	}
	if err != nil {
		return facts, fmt.Errorf("placing the QEMU that reads the disk: %w", err)
	}
	return domain.ParseFacts(doc)
}

// readerOf is the UUID of the QEMU that reads a disk of a guest that does not run.
func readerOf(vm types.UID) string {
	return uuid.NewSHA1(uuid.NameSpaceOID, []byte("berth-commit-"+vm)).String()
}

// quiesced does begin while the guest holds its writes, if its agent has it do so.
func (r *Reconciler) quiesced(c *commit, guest *domain.Facts, begin func() error) (is bool, err error) {
	err = errors.New("no guest agent is connected")
	if guest.AgentConnected {
		err = r.converse(c.VM, guest.AgentPTY, freezeTimeout, "Guest agent does not hold writes", func(ctx context.Context, agent GuestAgent) error {
			return qga.Freeze(ctx, agent)
		})
	}
	if is = err == nil; !is && c.Quiesce == v1alpha1.QuiesceRequired {
		return false, fault.NewTransient(v1alpha1.ReasonNotQuiesced, fmt.Errorf("the guest did not hold its writes: %w", err))
	}
	err = begin()
	if guest.AgentConnected { // one that did not answer may have understood
		thawed := r.thaw(c.VM, guest.AgentPTY)
		if is {
			err = errors.Join(err, thawed)
		}
	}
	return is, err
}

func (r *Reconciler) thaw(vm types.UID, pts int) error {
	return r.converse(vm, pts, thawTimeout, "Guest agent does not let writes go on", func(ctx context.Context, agent GuestAgent) error {
		return qga.Thaw(ctx, agent)
	})
}

// cleanCommit removes what a commit of an agent before this one has left, or one that could not be cleaned up at its end.
func (r *Reconciler) cleanCommit(ctx context.Context, vm types.UID) {
	if _, goesOn := r.commits.LoadOrStore(vm, &commit{}); goesOn {
		return
	}
	defer r.commits.Delete(vm)
	if err := r.endCommit(ctx, vm, true); err != nil {
		logUnclean(vm, err)
	}
}

func logUnclean(vm types.UID, err error) {
	ctrl.Log.WithName("host").Info("A commit is not cleaned up yet", "guest", vm, "err", err.Error())
}

// endCommit removes what a commit leaves on the node, and whatever uses it: QEMU's copying, the QEMU that reads, and, if it may
// have been asked to, a guest's waiting to be let go on, which it may begin as late as it answers. One that refuses has none.
func (r *Reconciler) endCommit(ctx context.Context, vm types.UID, frozen bool) error {
	return r.Host.Store.EndCommit(string(vm), func() error {
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		found, err := r.Host.Libvirt.Domain(ctx, string(vm))
		if err = errors.Join(err, r.Host.Libvirt.Destroy(ctx, readerOf(vm))); err != nil || !found.Exists {
			return err
		}
		facts, err := domain.ParseFacts(found.XML)
		if err = errors.Join(err, r.Host.Backups.AbortBackup(ctx, string(vm))); err != nil || !frozen || !facts.AgentConnected {
			return err
		}
		if err = r.thaw(vm, facts.AgentPTY); errors.Is(err, qga.ErrRefused) { //nolint:contextcheck // it is not given up
			return nil
		}
		return err
	})
}
