package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/workqueue"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/host"
	"github.com/berth-dev/berth/internal/agent/pulls"
	"github.com/berth-dev/berth/internal/agent/shims"
	"github.com/berth-dev/berth/internal/agent/virtualmachine"
	"github.com/berth-dev/berth/internal/agent/volumes"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/guest/seed"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/console"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/podnet"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/qga"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/internal/host/sandbox"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/host/volume"
	"github.com/berth-dev/berth/internal/kube"
)

// queue is what the guests' loop works off.
type queue = workqueue.TypedRateLimitingInterface[types.UID]

// wiring joins the rooms of the agent with each other and with the host.
type wiring struct {
	life    context.Context // ends with the agent
	cache   client.Reader
	libvirt *libvirtd.Client
	runtime *runtime.Runtime
	cgroups *cgroup.Host
	pulls   *pulls.Puller
	host    *host.Reconciler
	guests  *virtualmachine.Reconciler
	workers *liveness
	queue   atomic.Pointer[queue] // nil until the loop has started
}

func wire(ctx context.Context, mgr ctrl.Manager, o Options) (*wiring, error) {
	w := &wiring{life: ctx, cache: mgr.GetClient()}
	consoles, err := console.New(o.RunDir)
	if err != nil {
		return nil, err
	}
	tools, err := toolsOf(o.GuestProgram)
	if err != nil {
		return nil, err
	}
	if err := lockNode(o.RunDir); err != nil {
		return nil, err
	}
	images := store.New(o.StateDir, o.RunDir, o.Reserve)
	images.Trusted = w.resync              // the guests wait for that
	images.Distrust(store.ErrUnidentified) // until the node's VirtualMachineHost is read
	if err := images.Check(); err != nil { // guests that run are cared for, and the host says so
		ctrl.Log.WithName("host").Error(err, "The store cannot be used yet")
	}
	if w.cgroups, err = cgroup.New(); err != nil {
		return nil, fmt.Errorf("finding cgroups: %w", err)
	}
	if w.runtime, err = runtime.New(o.RuntimeSocket); err != nil {
		return nil, fmt.Errorf("reaching the container runtime: %w", err)
	}
	w.libvirt = libvirtd.New(libvirtd.Options{Sockets: []string{
		filepath.Join(o.LibvirtDir, "libvirt-sock"), filepath.Join(o.LibvirtDir, "virtqemud-sock"),
	}}, libvirtd.Watcher{
		Changed: func(uuid string) { w.enqueue(types.UID(uuid)) },
		Resync:  func() { go w.guests.ResyncChanged() }, //nolint:contextcheck // it has the agent's whole life
		Connectivity: func(err error) { //nolint:contextcheck // it has the agent's whole life
			w.host.LibvirtConnectivity(err)
			w.resync()
		},
	})
	counted := newAgentMetrics(metrics.Registry, o.StateDir, w.libvirt.Connected, func() int64 { return w.host.StrayBytes() }, w.libvirt.BlockStats)
	attachments := volume.New(filepath.Join(o.RunDir, "volumes"), func(context.Context) (int, error) { return w.libvirt.PID() })
	sessions := shims.New(shims.Options{Runtime: w.runtime, Wake: w.enqueue, BootTime: shimproto.BootTime, CountProtocolError: counted.protocolErrors.Inc})
	registry := image.New(image.Options{PlainHTTP: o.InsecureRegistries, Registries: o.Registries, MaxBytes: o.MaxImageSize, UserAgent: "berth-agent/" + o.Version})
	w.pulls = pulls.New(ctx, pulls.Options{
		Store: images, Limits: o.Pulls, Import: images.Import,
		Resolve: func(ctx context.Context, ref image.Reference, keys image.Keychain) (pulls.Resolved, error) {
			found, err := registry.Resolve(ctx, ref, keys)
			if err != nil {
				return pulls.Resolved{}, err
			}
			return pulls.Resolved{Digest: func() string { return found.Digest }, Fingerprint: found.Fingerprint, Layers: found}, nil
		},
		Fingerprints: registry.Fingerprints,
		Collect: func(now time.Time) (removed []store.Image, err error) {
			limits := o.Images
			if limits.Keep, err = virtualmachine.Named(ctx, mgr.GetClient()); err != nil {
				return nil, err
			}
			return images.Collect(limits, now)
		},
		Wake: w.enqueue, Pulled: func(vm types.UID, said string) { go w.guests.TellPulled(vm, said) },
		Removed: func() { w.host.Wake() }, Metrics: counted.pulls, Now: time.Now,
	})
	w.host = host.New(ctx, host.Options{
		Node: o.Node, Version: o.Version, Acceleration: o.Acceleration, UnifiedCgroups: w.cgroups.Unified(), RequireConfinement: o.RequireConfinement, KeepStrayDisks: o.KeepStrayDisks, Client: mgr.GetClient(),
		Libvirt: w.libvirt, CheckVolumes: attachments.Check, Store: images, FindQEMU: process.Table{}.Find, PodOf: podOf, Now: time.Now,
		VirtualMachine: func(ctx context.Context, uid types.UID) (*v1alpha1.VirtualMachine, error) {
			return w.guests.VirtualMachine(ctx, uid)
		},
	})
	w.guests = virtualmachine.New(ctx, virtualmachine.Options{
		Node:   o.Node,
		Guests: machine.Host{Acceleration: o.Acceleration, GuestSubnet: o.GuestSubnet, MaxUnsizedDisk: o.MaxUnsizedDisk},
		Host: virtualmachine.Host{
			Libvirt: w.libvirt, Backups: w.libvirt, Processes: process.Table{}, Cgroups: w.cgroups, Store: images, Consoles: consoles, Network: podnet.Pods{},
			OpenGuestAgent: func(ctx context.Context, pid, pts int) (virtualmachine.GuestAgent, error) {
				return qga.OpenPort(ctx, pid, pts)
			},
			Push: registry.Push,
			Volumes: volumes.New(ctx, volumes.Options{
				Host: attachments, Disks: attachments, Run: sandbox.Run, Wake: w.enqueue, Now: time.Now,
			}),
			ReadFile: volume.ReadFile, Shims: sessionsOf{sessions}, Images: w.pulls, Facts: w.host,
		},
		Partition: w.partition, HoldBackPulls: registry.HoldBack, Tools: tools,
		Cache: mgr.GetClient(), Live: mgr.GetAPIReader(),
		Status:  &kube.StatusWriter{Client: mgr.GetClient(), Manager: kube.AgentManager},
		Events:  mgr.GetEventRecorder("berth-agent"),
		Metrics: &counted.guests, Enqueue: w.enqueue, Now: time.Now,
	})
	w.workers = &liveness{
		reconciler: reconcile.TypedFunc[types.UID](w.guests.Reconcile), workers: workers, now: time.Now,
	}
	return w, nil
}

// toolsOf is the disk with the guest program at path. It takes some MiB, which nobody keeps: each node has it in a file.
func toolsOf(path string) (store.Tools, error) {
	image := func() ([]byte, error) {
		program, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading the guest program: %w", err)
		}
		return seed.Tools(program), nil
	}
	first, err := image()
	sum := sha256.Sum256(first)
	return store.Tools{Digest: hex.EncodeToString(sum[:]), Image: image}, err
}

// resync has all guests looked at. It does not wait.
func (w *wiring) resync() { go w.guests.ResyncAll() }

// sessionsOf are sessions as the guests' room takes them.
type sessionsOf struct{ *shims.Sessions }

// Connect is that of shims.Sessions.
func (s sessionsOf) Connect(ctx context.Context, vm, pod types.UID) (virtualmachine.Session, plan.Container, error) {
	session, container, err := s.Sessions.Connect(ctx, vm, pod)
	if session == nil {
		return nil, container, err
	}
	return session, container, err
}

// enqueue has a guest looked at. It never blocks, so every event handler may call it.
func (w *wiring) enqueue(vm types.UID) {
	if q := w.queue.Load(); q != nil && vm != "" {
		(*q).Add(vm)
	}
}

// listen begins to feed the loop's queue with what happens on the host.
func (w *wiring) listen(ctx context.Context, q queue) error {
	w.queue.Store(&q)
	go w.libvirt.Run(ctx)
	go func() {
		err := w.runtime.Events(ctx, func(pod string) { w.onContainer(types.UID(pod)) }, w.resync)
		if err != nil && ctx.Err() == nil {
			ctrl.Log.WithName("host").Info("The container runtime has no event stream: container changes are learnt from kubelet, later", "err", err.Error())
		}
	}()
	return nil
}

// onContainer enqueues the guest of a pod one of whose containers changed.
func (w *wiring) onContainer(pod types.UID) {
	var pods corev1.PodList
	if err := w.cache.List(w.life, &pods, client.MatchingFields{virtualmachine.IndexUID: string(pod)}); err != nil || len(pods.Items) == 0 {
		return
	}
	w.enqueue(berthUID(&pods.Items[0]))
}

// podOf is the UID of the pod in whose container a process is, "" if it is in none.
func podOf(pid int) (types.UID, error) {
	group, err := cgroup.Of(pid)
	if err != nil {
		return "", err
	}
	pod, _, _ := group.Container()
	return types.UID(pod), nil
}

// partition is the pod's slice, so that QEMU is born where the pod's end reaches it. Only machined takes it.
func (w *wiring) partition(podUID string) string {
	root, err := w.libvirt.Root()
	if err != nil {
		return ""
	}
	if _, err := os.Stat(filepath.Join(root, "run/systemd/machines")); err != nil {
		return ""
	}
	partition, _ := w.cgroups.Partition(podUID) // without one it is placed later all the same
	return partition
}
