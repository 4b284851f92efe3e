package pulls

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apimachinery/pkg/util/wait"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
)

// contentOf is what the store keeps of an image with a digest.
func contentOf(i machine.Image, digest string) store.Content {
	return store.Content{Digest: digest, Kernel: i.Kernel, Initrd: i.Initrd}
}

// Keys reads the credentials of a VM. It is called only if they are needed.
type Keys = func() (image.Keychain, error)

// Store is what the node has of images: their contents, what references meant, and who may have them.
type Store interface {
	Image(c store.Content) (store.Image, error)
	ResolveTag(reference string) (digest string, err error)
	SetTag(reference, digest string) error
	HasAccess(c store.Content, proofs []string) (bool, error)
	GrantAccess(c store.Content, proof string) error
}

// Resolved is an image that a registry has, and gave access to.
type Resolved struct {
	Digest      func() string // as in image.Image: "" until all has come, if only that tells
	Fingerprint string        // as in image.Image
	Layers      interface {
		Received() (taken, of int64)
		Disk(ctx context.Context, create image.Create) error
		Files(ctx context.Context, paths map[string]image.File, create image.Create) error
	}
}

// Options are what a Puller needs of others.
type Options struct {
	Store   Store
	Limits  Limits
	Import  func(context.Context, store.Import) error                                // brings a content into the store
	Resolve func(context.Context, image.Reference, image.Keychain) (Resolved, error) // asks a registry
	// Fingerprints are what keys prove of an image; see image.Client.
	Fingerprints func(image.Keychain, image.Reference) []string
	Collect      func(now time.Time) ([]store.Image, error) // removes images that nothing uses, and returns them
	Wake         func(vm types.UID)                         // a pull of the VM has ended; it never waits
	Pulled       func(vm types.UID, said string)            // that it has its image, and how; it never waits
	Removed      func()                                     // images were removed
	Metrics      Metrics
	Now          func() time.Time
}

// Metrics are what a Puller counts.
type Metrics struct {
	Pulls, Bytes prometheus.Counter
	Failures     *prometheus.CounterVec // by reason
	Removals     prometheus.Counter
}

// Puller pulls images to this node. It is safe for concurrent use.
type Puller struct {
	Options
	background context.Context

	mu       sync.Mutex
	pulls    map[source]*pull
	wants    map[want]*pull
	queue    []*pull               // those that wait for a place, in order
	running  map[*pull]bool        // those that have one
	asked    map[want]bool         // of what is to be pulled always, what a registry was asked for
	verdicts *cache.LRUExpireCache // errors, by what is judged
}

// clock is Now of Options, as a cache wants it.
type clock func() time.Time

// Now returns the time.
func (c clock) Now() time.Time { return c() }

// want is a VM's, of an image.
type want struct {
	vm    types.UID
	image machine.Image
}

// New makes a Puller, whose pulls end with ctx.
func New(ctx context.Context, o Options) *Puller {
	return &Puller{
		Options: o, background: ctx, pulls: map[source]*pull{}, wants: map[want]*pull{},
		running: map[*pull]bool{}, asked: map[want]bool{}, verdicts: cache.NewLRUExpireCacheWithClock(maxVerdicts, clock(o.Now)),
	}
}

// State returns the state of an image that a VM needs. One that is ready has its digest, and the VM may have it from the
// store at once.
func (p *Puller) State(vm types.UID, i machine.Image, keys Keys) (plan.Image, error) {
	p.mu.Lock()
	u := p.wants[want{vm, i}]
	if u == nil {
		isKnown := i.Pull != corev1.PullAlways || p.asked[want{vm, i}]
		p.mu.Unlock()
		state, err := p.storedState(i, keys, isKnown)
		if err != nil || state.State != plan.ImageMissing || i.Pull != corev1.PullNever {
			return state, err
		}
		if _, err := keys(); err == nil { // else Start says what is wrong with them
			err := fmt.Errorf("image %s is not on the node, or not for these imagePullSecrets, and imagePullPolicy is Never: bring it there by a VirtualMachineImage, or set IfNotPresent", i.From())
			state = plan.Image{State: plan.ImageFailed, Err: fault.NewUser(v1alpha1.ReasonImageNotFound, err), Retry: p.Now().Add(maxBackoff)}
		}
		return state, nil
	}
	state, from := u.state, u.source
	if u.progress != nil {
		state.Progress = fmt.Sprintf("%d MiB", u.progress.Bytes.Load()>>20)
		if taken, of := u.received(); of > 0 {
			state.Progress += fmt.Sprintf(", %d %% of what is sent", min(taken*100/of, 100))
		}
	}
	p.mu.Unlock()
	if state.State == plan.ImageFailed {
		if held, err := keys(); err == nil && p.sourceOf(vm, i, held, nil) != from { // with other credentials it may be had at once
			return plan.Image{State: plan.ImageMissing}, nil
		}
	}
	return state, nil
}

// storedState is the state of an image of which no pull is known. It is ready if the store has it and the holder of the
// keys may have it. isKnown: what the store has of a reference is what it means.
func (p *Puller) storedState(i machine.Image, keys Keys, isKnown bool) (plan.Image, error) {
	missing := plan.Image{State: plan.ImageMissing}
	ref, err := image.ParseReference(i.From())
	if err != nil {
		return missing, nil //nolint:nilerr // the pull says it
	}
	digest := i.Digest
	if digest == "" && isKnown {
		if digest, err = p.Store.ResolveTag(ref.String()); err != nil {
			return missing, fmt.Errorf("reading the digest of %s: %w", i.From(), err)
		}
	}
	if digest == "" {
		return missing, nil
	}
	content := contentOf(i, digest)
	if _, err := p.Store.Image(content); errors.Is(err, fs.ErrNotExist) {
		return missing, nil
	} else if err != nil {
		return missing, fmt.Errorf("looking %s up: %w", i.From(), err)
	}
	held, err := keys()
	if err != nil {
		return missing, nil //nolint:nilerr // the pull says it
	}
	proofs := p.Fingerprints(held, ref)
	if i.Named != "" {
		proofs = append(proofs, proofOf(i))
	}
	allowed, err := p.Store.HasAccess(content, proofs)
	if err != nil || !allowed {
		return missing, err
	}
	return plan.Image{State: plan.ImageReady, Digest: digest}, nil
}

// collectPeriod is how often unused images are removed; their last use is known as exactly.
const collectPeriod = 10 * time.Minute

// GarbageCollect removes images that nothing has used for long, again and again until ctx ends.
func (p *Puller) GarbageCollect(ctx context.Context) error {
	wait.UntilWithContext(ctx, func(context.Context) { p.collect() }, collectPeriod)
	return nil
}

// collect removes unused images once. Nothing waits for it.
func (p *Puller) collect() {
	log := ctrl.Log.WithName("host")
	removed, err := p.Collect(p.Now())
	if err != nil {
		log.Error(err, "Removing unused images")
	}
	for _, i := range removed {
		log.Info("Removed unused image", "image", i.Digest, "bytes", i.Allocated)
		p.Metrics.Removals.Inc()
	}
	if len(removed) > 0 {
		p.Removed()
	}
}
