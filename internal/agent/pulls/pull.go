package pulls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
)

// Backoff of a failed pull. What only a user can correct is asked for ever more seldom: another spec, or another
// Secret, is another pull.
const (
	minBackoff     = 2 * time.Second
	maxBackoff     = time.Minute
	maxUserBackoff = time.Hour
)

// The most that a kernel and an initrd may have, in bytes: QEMU reads them into memory that the berth does not pay for.
const (
	maxKernel = 128 << 20
	maxInitrd = 512 << 20
)

// source is what a pull is shared by: VMs that name the same, with the same credentials, wait for the same answer.
// Nobody waits for a source that he did not name, or hears of it.
type source struct {
	reference      string // with the digest, if the VM had one
	kernel, initrd string
	fingerprints   string    // of the credentials
	vm             types.UID // whose credentials cannot be read; "" otherwise
}

func (p *Puller) sourceOf(vm types.UID, i machine.Image, keys image.Keychain, err error) source {
	s := source{reference: i.From(), kernel: i.Kernel, initrd: i.Initrd}
	if err != nil {
		s.vm = vm
		return s
	}
	if ref, err := image.ParseReference(i.From()); err == nil {
		s.reference, s.fingerprints = ref.At(i.Digest).String(), strings.Join(p.Fingerprints(keys, ref), " ")
	}
	return s
}

// pull is an image on its way, waiting for its turn, or one that failed.
type pull struct {
	source
	image    machine.Image
	keys     image.Keychain
	wanted   map[types.UID]string // by which VMs, with their namespaces; never empty
	state    plan.Image
	failures int
	needs    need

	// While it has a place:
	cancel    context.CancelFunc
	namespace string          // whose place it is
	progress  *store.Progress // once the registry has answered
	received  func() (taken, of int64)
}

// need is the space in bytes that a content is known to take at least, as there was too little for it.
type need struct {
	content store.Content
	bytes   int64
}

// run is one attempt of a pull that has a place.
func (p *Puller) run(ctx context.Context, u *pull) {
	began := p.Now()
	err := p.fetch(ctx, u)
	took := p.Now().Sub(began)
	if fault.ReasonOf(err) == v1alpha1.ReasonStoreFull {
		p.collect() // before it is tried again
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	u.cancel()
	delete(p.running, u)
	p.dispatch()                //nolint:contextcheck // a pull ends with those that want it, not with another
	if p.pulls[u.source] == u { // else nobody wants it any more
		if err == nil {
			for vm := range u.wanted {
				p.Pulled(vm, u.said(took))
			}
		}
		p.end(u, err)
	}
}

// said is what people are told of a pull that took so long.
func (u *pull) said(took time.Duration) string {
	taken, _ := u.received()
	mib := float64(taken) / (1 << 20)
	return fmt.Sprintf("Pulled image %s: %.1f MiB in %.1f s, %.1f MiB/s", u.image.From(), mib, took.Seconds(), mib/max(took.Seconds(), 0.001))
}

// end notes how an attempt ended, and wakes who waited for it.
func (p *Puller) end(u *pull, err error) {
	for vm := range u.wanted {
		defer p.Wake(vm)
	}
	if err == nil {
		p.Metrics.Pulls.Inc()
		p.leaveAll(func(w want, other *pull) bool {
			if other == u && w.image.Pull == corev1.PullAlways {
				p.asked[w] = true
			}
			return other == u
		})
		return
	}
	p.Metrics.Failures.WithLabelValues(string(fault.ReasonOf(err))).Inc()
	longest := maxBackoff
	if fault.ClassOf(err) == fault.User {
		longest = maxUserBackoff
	}
	rest := max(min(minBackoff<<min(u.failures, 12), longest), image.RetryAfter(err))
	u.state = plan.Image{State: plan.ImageFailed, Err: err, Retry: p.Now().Add(rest)}
	u.failures++
	if fault.ReasonOf(err) == v1alpha1.ReasonStoreFull && u.progress != nil {
		u.needs.bytes = max(u.needs.bytes, u.progress.Stored.Load())
	}
	u.progress = nil
}

// imageError is an error that names its image already.
type imageError struct{ error }

// fetch pulls one image into the store.
func (p *Puller) fetch(ctx context.Context, u *pull) error {
	i := u.image
	ref, err := image.ParseReference(i.From())
	if err != nil {
		return err
	}
	found, err := p.Resolve(ctx, ref.At(i.Digest), u.keys)
	if err != nil {
		return err
	}
	content := contentOf(i, found.Digest())
	if verdict, is := p.verdicts.Get(judged{u.source, content}); is {
		return verdict.(error)
	}
	progress := &store.Progress{}
	p.mu.Lock()
	u.state, u.progress, u.received = plan.Image{State: plan.ImagePulling}, progress, found.Layers.Received
	if u.needs.content != content {
		u.needs = need{content: content}
	}
	needs := u.needs.bytes
	p.mu.Unlock()
	whole := false // all of it came
	transfer := func(ctx context.Context, create store.Create) error {
		if err := copyFiles(ctx, found, i, create); err != nil {
			return imageError{err}
		}
		whole = true
		return nil
	}
	err = p.Import(ctx, store.Import{
		Content: content, Fetch: transfer, Fetched: found.Digest, Needs: needs, Progress: progress,
		Source: ref.Source(), Stopping: func() bool { return p.background.Err() != nil }, // what is proved is that this source served all
	})
	if err == nil {
		content = contentOf(i, found.Digest())
		err = p.prove(content, ref, found.Fingerprint, func() error {
			if whole {
				return nil
			}
			return transfer(ctx, func(string, int64) (io.Writer, error) { return checked{progress}, nil })
		})
	}
	if err == nil && i.Named != "" {
		err = p.Store.GrantAccess(content, proofOf(i))
	}
	if err == nil && i.Digest == "" { // otherwise what the name means now is another question
		err = p.Store.SetTag(ref.String(), content.Digest)
	}
	p.Metrics.Bytes.Add(float64(progress.Bytes.Load()))
	named, is := errors.AsType[imageError](err)
	if is {
		err = named.error
	} else if err != nil {
		err = fmt.Errorf("image %s: %w", i.From(), err)
	}
	// Of content whose every byte was there. That of a URL without a checksum may be another tomorrow.
	if (is || whole) && content.Digest != "" && slices.Contains(verdicts, fault.ReasonOf(err)) {
		p.verdicts.Add(judged{u.source, content}, err, verdictLife)
	}
	return err
}

// copyFiles copies what is wanted of an image to where create says.
func copyFiles(ctx context.Context, found Resolved, i machine.Image, create store.Create) error {
	if i.Kernel == "" {
		return found.Layers.Disk(ctx, func(_ string, size int64) (io.Writer, error) { return create(store.Disk, size) })
	}
	files := map[string]image.File{i.Kernel: {Name: store.Kernel, MaxBytes: maxKernel}}
	if i.Initrd != "" {
		files[i.Initrd] = image.File{Name: store.Initrd, MaxBytes: maxInitrd}
	}
	return found.Layers.Files(ctx, files, create)
}

// checked is where bytes go that are there already: they prove that a source has them.
type checked struct{ progress *store.Progress }

func (c checked) Write(b []byte) (int, error) {
	c.progress.Bytes.Add(int64(len(b)))
	return len(b), nil
}

// proofOf is that of whoever names an image by its VirtualMachineImage, for which it was pulled.
func proofOf(i machine.Image) string { return "VirtualMachineImage " + string(i.Named) }

// prove records who may have a content that is in the store. That a registry has its manifest is no proof, as whoever
// may read the manifest of a private image can serve it from a registry of his own: the repository must have served
// the whole content to this node once.
func (p *Puller) prove(c store.Content, ref image.Reference, fingerprint string, transfer func() error) error {
	repository := "repository " + ref.Source()
	served, err := p.Store.HasAccess(c, []string{repository})
	if err == nil && !served {
		if err = transfer(); err == nil {
			err = p.Store.GrantAccess(c, repository)
		}
	}
	if err == nil {
		err = p.Store.GrantAccess(c, fingerprint)
	}
	return err
}

const (
	// verdictLife is how long it is known of a content that it can never be used: it is not downloaded again just to see.
	verdictLife = 6 * time.Hour
	// maxVerdicts bounds how many are known.
	maxVerdicts = 1024
)

// judged is a content from a source. Another source of the same digest has a verdict of its own: it has other names,
// which are nobody else's business.
type judged struct {
	source
	content store.Content
}

// verdicts are why a content can never be used.
var verdicts = []v1alpha1.Reason{v1alpha1.ReasonImageNotDisk, v1alpha1.ReasonImageUnsafe, v1alpha1.ReasonImageTooLarge}
