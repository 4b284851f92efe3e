package pulls

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
)

// Image is an image that a VM needs.
type Image struct {
	Name           string // of the disk, or plan.Kernel
	Reference      string // as in the spec
	Digest         string // pins it to what the VM has had of it; "" if that is nothing
	Kernel, Initrd string // paths in it; both "" if it is a disk's
}

// Content is what the store keeps of the image, once its digest is known.
func (i Image) Content(digest string) store.Content {
	return store.Content{Digest: digest, Kernel: i.Kernel, Initrd: i.Initrd}
}

// Keys reads the credentials of a VM. It is called only if they are needed.
type Keys func() (image.Keychain, error)

// Store is what the node has of images: their contents, what references meant, and who may have them.
type Store interface {
	Image(c store.Content) (store.Image, error)
	Recall(reference string) (digest string, err error)
	Remember(reference, digest string) error
	Allowed(c store.Content, proofs []string) (bool, error)
	Allow(c store.Content, proof string) error
}

// Import is a content on its way into the store.
type Import interface {
	Wait() error
	Bytes() int64
}

// Resolved is an image that a registry has, and gave access to.
type Resolved struct {
	Digest, Proof string // as in image.Image
	Layers        interface {
		Disk(ctx context.Context, create image.Create) error
		Files(ctx context.Context, paths map[string]string, create image.Create) error
	}
}

// Options are what a Puller needs of others.
type Options struct {
	Store   Store
	Import  func(_ context.Context, c store.Content, source string, fetch store.Fetch) Import // begins one, or joins the one from the same source
	Resolve func(context.Context, image.Reference, image.Keychain) (Resolved, error)          // asks a registry
	Collect func(now time.Time) ([]store.Image, error)                                        // removes images that nothing uses, and returns them
	Wake    func(vm types.UID)                                                                // a pull of the VM has ended
	Removed func()                                                                            // images were removed
	Metrics Metrics
	Now     func() time.Time
}

// Metrics are what a Puller counts.
type Metrics struct {
	Pulls, Bytes prometheus.Counter
	Failures     *prometheus.CounterVec // by reason
	Removals     prometheus.Counter
}

// Puller brings images to this node. It is safe for concurrent use.
type Puller struct {
	Options
	life context.Context

	mu    sync.Mutex
	pulls map[key]pull
}

// New makes a Puller, whose pulls end with ctx.
func New(ctx context.Context, o Options) *Puller {
	return &Puller{Options: o, life: ctx, pulls: map[key]pull{}}
}

// State tells how far an image is that a VM needs. One that is ready has its digest, and the VM may have it from the
// store at once.
func (p *Puller) State(vm types.UID, i Image, keys Keys) (plan.Image, error) {
	p.mu.Lock()
	has, ok := p.pulls[key{vm, i}]
	p.mu.Unlock()
	if !ok {
		return p.stored(i, keys)
	}
	if has.job != nil {
		return plan.Image{State: plan.ImagePulling, Progress: fmt.Sprintf("%d MiB", has.job.Bytes()>>20)}, nil
	}
	return has.state, nil
}

// stored is the state of an image of which no pull is known. It is ready if the store has it and the holder of the
// keys may have it.
func (p *Puller) stored(i Image, keys Keys) (plan.Image, error) {
	missing := plan.Image{State: plan.ImageMissing}
	ref, err := image.ParseReference(i.Reference)
	if err != nil {
		return missing, nil //nolint:nilerr // the pull says it
	}
	digest := i.Digest
	if digest == "" {
		if digest, err = p.Store.Recall(ref.String()); err != nil {
			return missing, fmt.Errorf("recalling %s: %w", i.Reference, err)
		}
	}
	if digest == "" {
		return missing, nil
	}
	content := i.Content(digest)
	if _, err := p.Store.Image(content); errors.Is(err, fs.ErrNotExist) {
		return missing, nil
	} else if err != nil {
		return missing, fmt.Errorf("looking %s up: %w", i.Reference, err)
	}
	held, err := keys()
	if err != nil {
		return missing, nil //nolint:nilerr // the pull says it
	}
	may, err := p.Store.Allowed(content, held.Proofs(ref))
	if err != nil || !may {
		return missing, err
	}
	return plan.Image{State: plan.ImageReady, Digest: digest}, nil
}
