package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/pulls"
	"github.com/berth-dev/berth/internal/agent/shims"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/internal/host/store"
)

// hands are the ways to the host, one for each foreign thing.
type hands struct {
	libvirt *libvirtd.Client
	runtime *runtime.Runtime
	store   *store.Store
	cgroups *cgroup.Host
	shims   *shims.Sessions
	pulls   *pulls.Puller
	hints   *hints
	watched *sync.Map       // process IDs of the QEMUs whose end is waited for
	life    context.Context // ends with the agent
}

func (a *Agent) takeHands(ctx context.Context) (h hands, err error) {
	h.life = ctx
	h.store = store.New(a.StateDir, a.RunDir)
	if err := h.store.Check(); err != nil { // guests that run are cared for, and the host says so
		ctrl.Log.WithName("host").Error(err, "The store cannot be used yet")
	}
	if err = os.MkdirAll(filepath.Join(a.RunDir, "consoles"), 0o700); err != nil {
		return h, fmt.Errorf("making the consoles' directory: %w", err)
	}
	if h.cgroups, err = cgroup.New(); err != nil {
		return h, fmt.Errorf("finding cgroups: %w", err)
	}
	registry := image.New(image.Options{PlainHTTP: a.InsecureRegistries, MaxBytes: a.MaxImageSize, UserAgent: "berth-agent/" + a.Version})
	if h.runtime, err = runtime.New(a.RuntimeSocket); err != nil {
		return h, fmt.Errorf("reaching the container runtime: %w", err)
	}
	h.libvirt = libvirtd.New(libvirtd.Options{Sockets: []string{
		filepath.Join(a.LibvirtDir, "libvirt-sock"), filepath.Join(a.LibvirtDir, "virtqemud-sock"),
	}}, libvirtd.Watcher{
		Changed: func(uuid string) { a.enqueue(types.UID(uuid)) },
		Resync:  func() { go a.recheck() }, //nolint:contextcheck // it has the agent's whole life
		Connectivity: func(err error) { //nolint:contextcheck // it has the agent's whole life
			a.host.LibvirtConnectivity(err)
			go a.resync()
		},
	})
	h.shims = shims.New(shims.Options{Runtime: h.runtime, Wake: a.enqueue, BootTime: bootTime, CountProtocolError: a.meters.protocolErrors.Inc})
	h.pulls = a.newPuller(ctx, registry, h.store)
	h.hints, h.watched = newHints(), &sync.Map{}
	return h, nil
}

// listen begins to feed the loop's queue with what happens on the host.
func (a *Agent) listen(ctx context.Context, q queue) error {
	a.queue = q
	log := ctrl.Log.WithName("host")
	go func() {
		if err := a.libvirt.Run(ctx); err != nil && ctx.Err() == nil {
			log.Error(err, "Lost libvirt for good")
		}
	}()
	go func() {
		err := a.runtime.Events(ctx, func(pod string) { a.onContainer(types.UID(pod)) }, func() { go a.resync() }) //nolint:contextcheck // it has the agent's whole life
		if err != nil && ctx.Err() == nil {
			log.Info("The runtime tells no events; kubelet's word is slower", "cause", err.Error())
		}
	}()
	return nil
}

// onContainer enqueues the guest of a pod one of whose containers changed.
func (a *Agent) onContainer(pod types.UID) {
	if owner, ok := a.ownerOf(pod); ok {
		a.enqueue(owner)
	}
}

// resync enqueues every guest that the host or the cache knows.
func (a *Agent) resync() { a.lookAround(func(types.UID, libvirtd.Domain) bool { return true }) }

// recheck enqueues those that are not, from afar, what they were when they were last looked at, and each of them now and
// then: events are hints, and a hundred guests that idle are to cost nothing.
func (a *Agent) recheck() {
	qemus, err := process.All()
	a.lookAround(func(uid types.UID, d libvirtd.Domain) bool {
		return err != nil || a.hints.isNew(uid, fromAfar(d, qemus[string(uid)]), a.now())
	})
}

// lookAround enqueues those of all guests that are worth it.
func (a *Agent) lookAround(worth func(types.UID, libvirtd.Domain) bool) {
	ctx, cancel := context.WithTimeout(a.life, 30*time.Second)
	defer cancel()
	defer a.host.Wake() // also when libvirtd is gone: that is what the host has to tell
	log := ctrl.Log.WithName("host")
	known := map[string]bool{}
	var vms v1alpha1.VirtualMachineList
	if err := a.client.List(ctx, &vms); err != nil {
		log.Error(err, "Listing guests")
	}
	for i := range vms.Items {
		known[string(vms.Items[i].UID)] = true
	}
	guests, err := a.store.List()
	if err != nil {
		log.Error(err, "Listing disks")
	}
	for _, g := range guests {
		known[g.UID] = true
	}
	consoles, err := os.ReadDir(filepath.Join(a.RunDir, "consoles"))
	if err != nil {
		log.Error(err, "Listing consoles")
	}
	for _, c := range consoles {
		known[strings.TrimSuffix(c.Name(), ".sock")] = true
	}
	domains, err := a.libvirt.States(ctx)
	if err != nil {
		domains = nil // the next connect asks again
	}
	for uuid := range domains {
		if !known[uuid] && a.host.IsOurs(ctx, uuid) {
			known[uuid] = true
		}
	}
	for uid := range known {
		if worth(types.UID(uid), domains[uid]) {
			a.enqueue(types.UID(uid))
		}
	}
}

// qemuGroup is the group that may open /dev/kvm on the host; the guest's own where there is none.
func (a *Agent) qemuGroup(user int) uint32 {
	if group := a.libvirt.KVMGroup(); group != 0 {
		return group
	}
	return uint32(user) //nolint:gosec // a uid
}

// partition is the pod's slice, so that QEMU is born where the pod's end reaches it. Only machined takes it.
func (a *Agent) partition(g *guest) string {
	root, err := a.libvirt.Root()
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(root, "run/systemd/machines")); err != nil {
		return ""
	}
	partition, err := a.cgroups.Partition(string(g.Berth.UID))
	if err != nil {
		return "" // it is placed later all the same
	}
	return partition
}

// setOOMScore gives QEMU the score that kubelet gives the berth. Lowering it may be forbidden to us: then the kernel chooses by size alone, which is QEMU.
func (a *Agent) setOOMScore(g *guest, pid int) error {
	score, err := process.OOMScore(g.link.PID())
	if err != nil {
		return err
	}
	return process.SetOOMScore(pid, score)
}

// bootTime is the time since boot; it never jumps.
func bootTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &t) // cannot fail: the clock exists since Linux 2.6.39
	return time.Duration(t.Nano())
}
