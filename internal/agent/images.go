package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/host/volume"
)

// maxPullSecret bounds a pull secret, in bytes: that of any Secret.
const maxPullSecret = 1 << 20

// How long a failed pull rests before it is tried again.
const (
	firstRetry = 2 * time.Second
	lastRetry  = time.Minute
)

// base is an image that a guest needs.
type base struct {
	name           string // the disk's, or plan.Kernel
	ref            string // as in the spec
	pin            string // the digest that the guest has had of it, "" if none
	kernel, initrd string
}

func (b base) content(digest string) store.Content {
	return store.Content{Digest: digest, Kernel: b.kernel, Initrd: b.initrd}
}

// basesOf lists what the guest needs. The digest that is recorded in its status
// stays its own: a tag that moves never changes a guest.
func basesOf(vm *v1alpha1.VirtualMachine) []base {
	var list []base
	for _, d := range vm.Spec.Disks {
		b := base{name: d.Name, ref: d.Image}
		for _, had := range vm.Status.Disks {
			if had.Name == d.Name && had.Image == d.Image {
				b.pin = had.ImageDigest
			}
		}
		list = append(list, b)
	}
	if k := vm.Spec.Kernel; k != nil {
		list = append(list, base{name: plan.Kernel, ref: k.Image, kernel: k.KernelPath, initrd: k.InitrdPath})
	}
	return list
}

// pulls are the images on their way, and those that failed.
type pulls struct {
	mu   sync.Mutex
	byVM map[pullKey]*pull
}

type pullKey struct {
	vm   types.UID
	base base
}

type pull struct {
	done     bool
	err      error
	retry    time.Time
	failures int
	content  store.Content // once known
}

func (p *pulls) get(key pullKey) (pull, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found := p.byVM[key]; found != nil {
		return *found, true
	}
	return pull{}, false
}

// begin notes that a pull goes on; false if it does already.
func (p *pulls) begin(key pullKey) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if found := p.byVM[key]; found == nil {
		p.byVM[key] = &pull{}
	} else if !found.done {
		return false
	} else {
		found.done, found.content = false, store.Content{}
	}
	return true
}

func (p *pulls) know(key pullKey, c store.Content) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.byVM[key].content = c
}

func (p *pulls) end(key pullKey, err error, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err == nil {
		delete(p.byVM, key)
		return
	}
	found := p.byVM[key]
	found.done, found.err = true, err
	found.retry = now.Add(min(firstRetry<<min(found.failures, 10), lastRetry))
	found.failures++
}

// forget drops what is known of a guest's failed pulls.
func (p *pulls) forget(vm types.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, pull := range p.byVM {
		if key.vm == vm && pull.done {
			delete(p.byVM, key)
		}
	}
}

// image tells how far the image below a guest's disk, or its kernel, is.
func (a *Agent) image(g *guest, b base) (plan.Image, error) {
	if p, ok := a.pulls.get(pullKey{g.uid, b}); ok {
		switch {
		case p.done:
			return plan.Image{State: plan.ImageFailed, Err: p.err, Retry: p.retry}, nil
		case p.content.Digest == "":
			return plan.Image{State: plan.ImagePulling, Progress: "asking the registry", Err: p.err}, nil
		}
		progress := "waiting"
		if i := a.store.Importing(p.content); i != nil {
			progress = fmt.Sprintf("%d MiB", i.Bytes()>>20)
		}
		return plan.Image{State: plan.ImagePulling, Progress: progress}, nil
	}
	content, err := a.available(g, b)
	switch {
	case err != nil:
		return plan.Image{}, err
	case content.Digest == "":
		return plan.Image{State: plan.ImageMissing}, nil
	}
	return plan.Image{State: plan.ImageReady, Digest: content.Digest}, nil
}

// available returns the content that the guest may have from the store at once; its digest is "" if there is none.
func (a *Agent) available(g *guest, b base) (store.Content, error) {
	none := store.Content{}
	ref, err := image.ParseReference(b.ref)
	if err != nil {
		return none, nil //nolint:nilerr // the pull says it
	}
	digest := b.pin
	if digest == "" {
		if digest, err = a.store.Recall(ref.String()); err != nil {
			return none, fmt.Errorf("recalling %s: %w", b.ref, err)
		}
	}
	if digest == "" {
		return none, nil
	}
	content := b.content(digest)
	if _, err := a.store.Image(content); errors.Is(err, fs.ErrNotExist) {
		return none, nil
	} else if err != nil {
		return none, fmt.Errorf("looking %s up: %w", b.ref, err)
	}
	keys, err := a.keychain(g)
	if err != nil {
		return none, nil //nolint:nilerr // the pull says it
	}
	may, err := a.store.Allowed(content, keys.Proofs(ref))
	if err != nil || !may {
		return none, err
	}
	return content, nil
}

// keychain reads the guest's pull secrets from its berth.
func (a *Agent) keychain(g *guest) (image.Keychain, error) {
	var keys image.Keychain
	if len(g.VM.Spec.ImagePullSecrets) > 0 && g.link == nil {
		return keys, errShimAbsent
	}
	for _, s := range g.VM.Spec.ImagePullSecrets {
		config, err := volume.ReadFile(g.link.shim.PID(), path.Join(berth.PullSecretsDir, s.Name, berth.PullSecretFile), maxPullSecret)
		if errors.Is(err, fs.ErrNotExist) {
			return keys, fault.ByUser(v1alpha1.ReasonSecretMissing, fmt.Errorf(
				"Secret %s/%s does not exist or has no key .dockerconfigjson: create it with kubectl create secret docker-registry", g.VM.Namespace, s.Name))
		}
		if err != nil {
			return keys, fmt.Errorf("reading pull secret %s: %w", s.Name, err)
		}
		if err := keys.Add(config); err != nil {
			return keys, fmt.Errorf("pull secret %s: %w", s.Name, err)
		}
	}
	return keys, nil
}

// pull begins to fetch images, and does not wait. The end of each wakes the guest.
func (a *Agent) pull(g *guest, names []string) {
	for _, b := range basesOf(g.VM) {
		for _, name := range names {
			key := pullKey{g.uid, b}
			if b.name != name || !a.pulls.begin(key) {
				continue
			}
			keys, err := a.keychain(g)
			go func() {
				if err == nil {
					err = a.fetch(a.life, key, keys)
				}
				a.meters.pulled(err)
				if fault.ReasonOf(err) == v1alpha1.ReasonStoreFull {
					a.collect() // before it is tried again
				}
				a.pulls.end(key, err, a.now())
				a.enqueue(key.vm)
			}()
		}
	}
}

// named is an error that names its image already.
type named struct{ error }

func (n named) Unwrap() error { return n.error }

// fetch brings one image into the store, whoever else waits for it.
func (a *Agent) fetch(ctx context.Context, key pullKey, keys image.Keychain) error {
	ref, err := image.ParseReference(key.base.ref)
	if err != nil {
		return err
	}
	asked := ref
	if key.base.pin != "" {
		asked = ref.At(key.base.pin)
	}
	found, err := a.registry.Resolve(ctx, asked, keys)
	if err != nil {
		return err
	}
	content := key.base.content(found.Digest)
	a.pulls.know(key, content)
	job := a.store.Import(ctx, content, func(ctx context.Context, create func(string) (io.Writer, error)) (err error) {
		defer func() {
			if err != nil {
				err = named{err}
			}
		}()
		if key.base.kernel == "" {
			return found.Disk(ctx, func(string) (io.Writer, error) { return create(store.Disk) })
		}
		files := map[string]string{key.base.kernel: store.Kernel}
		if key.base.initrd != "" {
			files[key.base.initrd] = store.Initrd
		}
		return found.Files(ctx, files, create)
	})
	err = job.Wait()
	a.meters.pullBytes.Add(float64(job.Bytes()))
	if _, is := errors.AsType[named](err); is {
		return err
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", key.base.ref, err)
	}
	if err := a.store.Allow(content, found.Proof); err != nil {
		return fmt.Errorf("recording access to %s: %w", key.base.ref, err)
	}
	if key.base.pin != "" {
		return nil // what the name means now is another question
	}
	if err := a.store.Remember(ref.String(), found.Digest); err != nil {
		return fmt.Errorf("remembering %s: %w", key.base.ref, err)
	}
	return nil
}
