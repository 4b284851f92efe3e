package pulls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
)

// How long a failed pull rests before it is tried again.
const (
	firstRetry = 2 * time.Second
	lastRetry  = time.Minute
)

// key names a pull: each VM has its own, and waits for nobody else's backoff.
type key struct {
	vm    types.UID
	image Image
}

// pull is an image on its way, or one that failed.
type pull struct {
	state    plan.Image
	failures int
	job      Import // once the registry has answered
}

// Start begins to pull an image, unless that goes on already, and does not wait. Its end wakes the VM.
func (p *Puller) Start(vm types.UID, i Image, keys Keys) {
	k := key{vm, i}
	if !p.begin(k) {
		return
	}
	held, err := keys()
	go func() {
		if err == nil {
			err = p.fetch(p.life, k, held)
		}
		if err == nil {
			p.Metrics.Pulls.Inc()
		} else {
			p.Metrics.Failures.WithLabelValues(string(fault.ReasonOf(err))).Inc()
		}
		if fault.ReasonOf(err) == v1alpha1.ReasonStoreFull {
			p.collect() // before it is tried again
		}
		p.end(k, err)
		p.Wake(vm)
	}()
}

// named is an error that names its image already.
type named struct{ error }

func (n named) Unwrap() error { return n.error }

// fetch brings one image into the store, whoever else waits for it.
func (p *Puller) fetch(ctx context.Context, k key, keys image.Keychain) error {
	i := k.image
	ref, err := image.ParseReference(i.Reference)
	if err != nil {
		return err
	}
	asked := ref
	if i.Digest != "" {
		asked = ref.At(i.Digest)
	}
	found, err := p.Resolve(ctx, asked, keys)
	if err != nil {
		return err
	}
	content := i.Content(found.Digest)
	transfers := false // and does not wait for another's transfer
	job := p.Import(ctx, content, asked.String()+"\x00"+found.Proof, func(ctx context.Context, create func(string) (io.Writer, error)) (err error) {
		transfers = true
		defer func() {
			if err != nil {
				err = named{err}
			}
		}()
		if i.Kernel == "" {
			return found.Layers.Disk(ctx, func(string) (io.Writer, error) { return create(store.Disk) })
		}
		files := map[string]string{i.Kernel: store.Kernel}
		if i.Initrd != "" {
			files[i.Initrd] = store.Initrd
		}
		return found.Layers.Files(ctx, files, create)
	})
	p.mu.Lock()
	p.pulls[k] = pull{state: plan.Image{State: plan.ImagePulling}, failures: p.pulls[k].failures, job: job}
	p.mu.Unlock()
	err = job.Wait()
	if transfers {
		p.Metrics.Bytes.Add(float64(job.Bytes()))
	}
	if _, is := errors.AsType[named](err); is {
		return err
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", i.Reference, err)
	}
	if err := p.Store.Allow(content, found.Proof); err != nil {
		return fmt.Errorf("recording access to %s: %w", i.Reference, err)
	}
	if i.Digest != "" {
		return nil // what the name means now is another question
	}
	if err := p.Store.Remember(ref.String(), found.Digest); err != nil {
		return fmt.Errorf("remembering %s: %w", i.Reference, err)
	}
	return nil
}

// begin notes that a pull goes on; false if it does already.
func (p *Puller) begin(k key) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	had, ok := p.pulls[k]
	if ok && had.state.State == plan.ImagePulling {
		return false
	}
	state := plan.Image{State: plan.ImagePulling, Progress: "asking the registry", Err: had.state.Err}
	p.pulls[k] = pull{state: state, failures: had.failures}
	return true
}

func (p *Puller) end(k key, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	failures := p.pulls[k].failures
	delete(p.pulls, k)
	if err != nil {
		retry := p.Now().Add(min(firstRetry<<min(failures, 10), lastRetry))
		p.pulls[k] = pull{state: plan.Image{State: plan.ImageFailed, Err: err, Retry: retry}, failures: failures + 1}
	}
}

// Forget drops what is known of a VM's failed pulls.
func (p *Puller) Forget(vm types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	maps.DeleteFunc(p.pulls, func(k key, had pull) bool { return k.vm == vm && had.state.State == plan.ImageFailed })
}
