package virtualmachine

import (
	"context"
	"errors"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/kube"
)

// Names of the indices in the cache that a Reconciler reads by: an object's UID, and the UID of its owner.
const (
	IndexUID   = "uid"
	IndexOwner = "owner"
)

// rounds bounds how often one sync looks again after its steps.
const rounds = 4

// StatusWriter writes a part of an object's status, if it is not what the API server has; as kube.StatusWriter does.
type StatusWriter interface {
	Write(ctx context.Context, obj client.Object, want, have any) (wrote bool, err error)
}

// Options are what a Reconciler knows and uses.
type Options struct {
	// Node is the name of the node.
	Node string
	// Guests is what the host means for each guest.
	Guests machine.Host
	Host   Host
	// Partition is the cgroup that QEMU is born in for a pod, as libvirt writes it; "" leaves it to libvirt.
	Partition func(podUID string) string
	// HoldBackPulls leaves more of the node's CPUs to the start of a guest, until done is called.
	HoldBackPulls func() (done func())
	// Tools is the disk with the guest program.
	Tools store.Tools
	// Cache has this node's guests and berths by IndexUID and IndexOwner, Live all that the API server has.
	Cache, Live client.Reader
	Status      StatusWriter
	Events      events.EventRecorder
	Metrics     *Metrics
	// Enqueue has a guest looked at. It does not block.
	Enqueue func(vm types.UID)
	Now     func() time.Time
}

// Reconciler cares for the guests of one node.
type Reconciler struct {
	Options
	guests       *guestCache
	starts       *starts
	making       *starts         // of images, by commits
	watched      sync.Map        // by process ID, the QEMUs whose end is waited for
	poweringDown sync.Map        // by types.UID, the guests whose agents are being asked to power off
	carried      sync.Map        // by types.UID of porters whose pulls have begun, the *os.File that is their log
	commits      sync.Map        // by types.UID of VMs, the *commit that makes an image of a disk
	life         context.Context // ends with the agent: what is asked of a guest outlives a sync
}

// New makes a Reconciler. What it does in the background ends with ctx.
func New(ctx context.Context, o Options) *Reconciler {
	return &Reconciler{
		Options: o, guests: newGuestCache(), life: ctx,
		starts: &starts{wake: o.Enqueue, now: o.Now, running: map[string]int{}},
		making: &starts{wake: func(types.UID) {}, now: o.Now, running: map[string]int{}}, // they look again by themselves
	}
}

// Reconcile brings one guest to what the API wants, by the UID of its VirtualMachine, or a porter, by its own.
func (r *Reconciler) Reconcile(ctx context.Context, uid types.UID) (ctrl.Result, error) {
	if p, err := r.porter(ctx, uid); p != nil || err != nil {
		var wake time.Duration
		if err == nil {
			wake, err = r.carry(ctx, p)
		}
		return kube.Outcome(err, wake)
	}
	wake, err := r.sync(ctrl.LoggerInto(ctx, ctrl.LoggerFrom(ctx).WithValues("guest", uid)), uid)
	return kube.Outcome(err, wake)
}

// sync brings one guest to what the API wants. Its only memory is the machine itself.
func (r *Reconciler) sync(ctx context.Context, uid types.UID) (time.Duration, error) {
	g, err := r.want(ctx, uid)
	if err != nil { // the API server cannot say; a guest that runs is cared for all the same
		ctrl.LoggerFrom(ctx).V(1).Info("Reconciling from what the host has: the API server does not answer", "err", err.Error())
	} else {
		r.Host.Images.Retain(uid, g.Images())
	}
	r.cleanCommit(ctx, uid)
	have := r.observe(ctx, g)
	var next plan.Next
	var failure error
	memory := r.guests.memory(uid)
	for range rounds {
		next, memory = plan.Decide(g.Want, have.Have, memory, r.Now())
		if len(next.Steps) == 0 {
			break
		}
		if failure = r.act(ctx, g, &have, next.Steps); failure != nil {
			break
		}
		have = r.observe(ctx, g)
		if next.Wake > 0 { // these steps take their time
			break
		}
	}
	r.guests.remember(uid, memory)
	r.Metrics.States.set(uid, stateOf(g, &have), &have.Facts)
	if err := r.measure(uid, &have); err != nil {
		ctrl.LoggerFrom(ctx).Info("Leaving QEMU's memory out of berth_uncharged_memory_bytes", "err", err.Error())
	}
	if err == nil && failure == nil && have.Unknown == nil && have.StartUnknown == nil && have.Domain == plan.DomainRunning && have.Shim != nil && have.Shim.Attached {
		r.guests.recordFingerprint(uid, have.fingerprint, r.Now())
	} else { // it waits for something, which might not be told
		r.guests.dropFingerprint(uid)
	}
	if g.VM == nil && err == nil && have.Unknown == nil && have.StartUnknown == nil && !have.Kept {
		r.guests.forget(uid)
	}
	if concernsStore(failure) || concernsStore(have.StartUnknown) { // the host has to tell, too
		r.Host.Facts.Wake()
	}
	// gofail: var beforeReport struct{}
	// crash()
	wake, reportErr := r.report(ctx, g, &have, memory, failure)
	return kube.MinWait(kube.MinWait(wake, next.Wake), have.askAgentIn), errors.Join(failure, reportErr, err)
}

// measure finds out how much of a placed QEMU's memory its container is not charged.
func (r *Reconciler) measure(uid types.UID, o *observed) error {
	pid := 0
	if o.Process == plan.ProcessInContainer && o.session != nil && len(o.qemus) == 1 {
		pid = o.qemus[0].PID
	}
	return r.Metrics.States.measure(uid, pid, func() (uint64, error) {
		return r.Host.Cgroups.Uncharged(o.session.Cgroup(), pid)
	})
}

// concernsStore: the failure is the store's, which concerns disks and host alike.
func concernsStore(err error) bool {
	reason := fault.ReasonOf(err)
	return err != nil && reason.ToldIn() == v1alpha1.ConditionDisksReady && reason.StandsIn(v1alpha1.InHost)
}

// ResyncAll has every guest looked at that the host or the cache knows.
func (r *Reconciler) ResyncAll() {
	r.resync(func(types.UID, libvirtd.Domain) bool { return true })
}

// ResyncChanged has those looked at whose fingerprint is not what it was when they were last looked at, and each of them
// now and then: events are hints, and a hundred guests that idle are to cost nothing.
func (r *Reconciler) ResyncChanged() {
	qemus, err := r.Host.Processes.PIDsByUUID()
	r.resync(func(uid types.UID, d libvirtd.Domain) bool {
		return err != nil || r.guests.changed(uid, fingerprint(d, qemus[string(uid)]), r.Now())
	})
}

// resync has those of all guests looked at that are worth it.
func (r *Reconciler) resync(worth func(types.UID, libvirtd.Domain) bool) {
	ctx, cancel := context.WithTimeout(r.life, 30*time.Second)
	defer cancel()
	defer r.Host.Facts.Wake() // also when libvirtd is gone: that is what the host has to tell
	log := ctrl.Log.WithName("host")
	known := sets.Set[string]{}
	var vms v1alpha1.VirtualMachineList
	if err := r.Cache.List(ctx, &vms); err != nil {
		log.Error(err, "Listing VirtualMachines")
	}
	for i := range vms.Items {
		known.Insert(string(vms.Items[i].UID))
	}
	guests, err := r.Host.Store.List()
	if err != nil {
		log.Error(err, "Listing the guests' directories")
	}
	for _, g := range guests {
		known.Insert(g.UID)
	}
	consoles, err := r.Host.Consoles.List()
	if err != nil {
		log.Error(err, "Listing the guests' consoles")
	}
	known.Insert(consoles...)
	attached, err := r.Host.Volumes.List()
	if err != nil {
		log.V(1).Info("Listing the guests' volumes", "err", err.Error()) // without libvirtd, which another line tells
	}
	known.Insert(attached...)
	domains, err := r.Host.Libvirt.States(ctx)
	if err != nil {
		domains = nil // the next connect asks again
	}
	for uuid := range domains {
		if !known.Has(uuid) && r.Host.Facts.IsOurs(ctx, uuid) {
			known.Insert(uuid)
		}
	}
	for uid := range known {
		if worth(types.UID(uid), domains[uid]) {
			r.Enqueue(types.UID(uid))
		}
	}
}
