package virtualmachine

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/kube"
)

const (
	shimPoll       = 200 * time.Millisecond // how soon a porter's shim is looked for again that has no socket yet
	progressPeriod = 5 * time.Second        // how often a porter's log tells how far its pull is
)

// porter returns the porter of that UID, nil if there is none, or none any more: one that was deleted by force is just gone.
func (r *Reconciler) porter(ctx context.Context, uid types.UID) (*corev1.Pod, error) {
	var pods corev1.PodList
	if err := r.Cache.List(ctx, &pods, client.MatchingFields{IndexUID: string(uid)}); err != nil {
		return nil, fmt.Errorf("reading porter: %w", err)
	}
	for i := range pods.Items {
		if berth.PorterOwner(&pods.Items[i]) != nil {
			return &pods.Items[i], nil
		}
	}
	r.forget(uid)
	r.dropCommit(uid)
	return nil, nil
}

// carry has the image pulled that a porter is for, or a disk committed, with the Secrets that the porter has mounted, and ends
// the porter with what has come of it: the digest, or why there is none. Either ends with its porter.
func (r *Reconciler) carry(ctx context.Context, p *corev1.Pod) (wake time.Duration, err error) {
	if p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed || !p.DeletionTimestamp.IsZero() {
		r.Host.Images.Retain(p.UID, nil)
		r.forget(p.UID)
		r.dropCommit(p.UID)
		return 0, nil
	}
	session, _, err := r.Host.Shims.Connect(ctx, p.UID, p.UID)
	if session == nil {
		if errors.Is(err, shimproto.ErrAbsent) {
			return shimPoll, nil
		}
		return 0, err // without one, its container is yet to start, which is told
	}
	if shim := session.State(nil); shim == nil || shim.Exiting {
		return 0, nil // it speaks, or ends, soon
	}
	errand, err := berth.ParseErrand(p)
	if err != nil {
		return 0, session.Send(ctx, failed(err))
	}
	i := machine.Image{For: p.Name, Reference: errand.Image, Digest: errand.Digest, Named: berth.PorterOwner(p).UID}
	var secrets []types.NamespacedName
	for _, name := range errand.PullSecrets {
		secrets = append(secrets, types.NamespacedName{Namespace: p.Namespace, Name: name})
	}
	keys := r.keys(session, secrets)
	log, begun := r.carried.Load(p.UID)
	if !begun {
		if log, err = openLog(ctx, session); err != nil {
			return 0, err
		}
		r.carried.Store(p.UID, log)
	}
	doing, state := "pulling", plan.Image{} // the registry is asked first, whatever the node knows of the name
	if errand.Commit != nil {
		doing, state = "committing disk "+errand.Commit.Disk+" to", r.carryCommit(p.UID, p.Namespace, errand, session, keys) //nolint:contextcheck // it outlives the look
	} else if begun {
		if state, err = r.Host.Images.State(p.UID, i, keys); err != nil {
			return 0, err
		}
	}
	switch state.State {
	case plan.ImageReady:
		r.forget(p.UID)
		r.Host.Facts.Wake() // which tells that it is there
		return 0, session.Send(ctx, shimproto.Exit{Message: state.Digest})
	case plan.ImageFailed:
		r.forget(p.UID)
		return 0, session.Send(ctx, failed(state.Err))
	case plan.ImageMissing:
		r.Host.Images.Start(p.UID, p.Namespace, i, keys)
	case plan.ImagePulling:
		file := log.(*os.File) //nolint:errcheck,forcetypeassert // nothing else is in there
		_ = file.SetWriteDeadline(time.Now().Add(time.Millisecond))
		_, _ = fmt.Fprintf(file, "%s %s: %s\r\n", doing, errand.Image, state.Progress) // who does not read it misses it
	}
	return progressPeriod, nil
}

// openLog gives the porter's shim one end of a stream in place of a console, and returns the other: what is written there is
// in the porter's log.
func openLog(ctx context.Context, session Session) (*os.File, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("making a porter's log: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(ends[0]), "log"), os.NewFile(uintptr(ends[1]), "log")
	defer func() { _ = theirs.Close() }()
	what := shimproto.HandOver{Devices: []shimproto.Device{{Kind: shimproto.KindConsole, Name: "log"}}}
	if err := session.HandOver(ctx, what, func(*shimproto.Device) (*os.File, error) { return theirs, nil }); err != nil {
		_ = ours.Close()
		return nil, err
	}
	return ours, nil
}

// forget closes the log of a porter, and so its shim's console, before it ends.
func (r *Reconciler) forget(porter types.UID) {
	if log, is := r.carried.LoadAndDelete(porter); is {
		_ = log.(*os.File).Close() //nolint:errcheck,forcetypeassert // nothing else is in there
	}
}

// failed ends a porter with an error.
func failed(err error) shimproto.Exit {
	return shimproto.Exit{Code: 1, Reason: string(fault.ReasonOf(err)), Message: err.Error()}
}

// resolve finds out where the disks' images come from that a VirtualMachineImage names.
func (r *Reconciler) resolve(ctx context.Context, m *machine.Machine) error {
	for i := range m.Disks {
		d := &m.Disks[i].Image
		name, is := d.Unresolved()
		if !is {
			continue
		}
		named, err := kube.Read[v1alpha1.VirtualMachineImage](ctx, r.Cache, types.NamespacedName{Namespace: m.Namespace, Name: name})
		if err != nil {
			return err
		}
		if named != nil && named.Status.Digest != "" {
			d.Source, d.Named, d.Digest = named.Status.Image, named.UID, cmp.Or(d.Digest, named.Status.Digest)
		}
	}
	return nil
}

// Named are the digests of images that VirtualMachineImages name. No node lets go of them.
func Named(ctx context.Context, cache client.Reader) (map[string]bool, error) {
	var images v1alpha1.VirtualMachineImageList
	if err := cache.List(ctx, &images); err != nil {
		return nil, fmt.Errorf("reading VirtualMachineImages: %w", err)
	}
	named := map[string]bool{}
	for i := range images.Items {
		named[images.Items[i].Status.Digest] = true
	}
	return named, nil
}
