package pulls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
)

// memory is a store without a disk.
type memory struct {
	mu       sync.Mutex
	images   map[store.Content]bool
	tags     map[string]string
	proofs   map[store.Content][]string
	failures map[string]error // by method
	needs    []int64          // what each import was known to need
}

func (m *memory) do(method string, work func()) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.failures[method]; err != nil {
		return err
	}
	work()
	return nil
}

func (m *memory) fail(method string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.failures[method] = err
}

func (m *memory) Image(c store.Content) (store.Image, error) {
	has := false
	err := m.do("Image", func() { has = m.images[c] })
	if err == nil && !has {
		err = fs.ErrNotExist
	}
	return store.Image{Content: c}, err
}

func (m *memory) ResolveTag(reference string) (digest string, err error) {
	err = m.do("ResolveTag", func() { digest = m.tags[reference] })
	return digest, err
}

func (m *memory) SetTag(reference, digest string) error {
	return m.do("SetTag", func() { m.tags[reference] = digest })
}

func (m *memory) HasAccess(c store.Content, proofs []string) (may bool, err error) {
	err = m.do("HasAccess", func() {
		may = slices.ContainsFunc(proofs, func(p string) bool { return slices.Contains(m.proofs[c], p) })
	})
	return may, err
}

func (m *memory) GrantAccess(c store.Content, proof string) error {
	return m.do("GrantAccess", func() { m.proofs[c] = append(m.proofs[c], proof) })
}

// Import brings a content at once; of several imports the first to end makes it, as in the real store.
func (m *memory) Import(ctx context.Context, i store.Import) error {
	m.mu.Lock()
	m.needs = append(m.needs, i.Needs)
	m.mu.Unlock()
	if _, err := m.Image(i.Content); err == nil {
		return nil
	}
	if i.Needs > 0 {
		if err := m.do("Room", func() {}); err != nil {
			return err
		}
	}
	w := &counter{i.Progress}
	if err := i.Fetch(ctx, func(string, int64) (io.Writer, error) { return w, nil }); err != nil {
		return err
	}
	if i.Content.Digest == "" {
		i.Content.Digest = i.Fetched()
	}
	if err := m.do("Import", func() {}); err != nil {
		return err
	}
	return m.do("", func() { m.images[i.Content] = true })
}

// counter tells the progress.
type counter struct{ progress *store.Progress }

func (c *counter) Write(b []byte) (int, error) {
	c.progress.Bytes.Add(int64(len(b)))
	c.progress.Stored.Add(int64(len(b)))
	return len(b), nil
}

// remote is an image in a registry.
type remote struct {
	digest  string
	late    bool // nothing but its bytes tells the digest
	private bool // only who has the password of team may have it
	size    int
	// hold and then err come in the midst of the transfer, after half the bytes; begun is told of it.
	begun chan struct{}
	hold  chan struct{}
	err   error

	transfers atomic.Int32
}

func (r *remote) named() string {
	if r.late && r.transfers.Load() == 0 {
		return ""
	}
	return r.digest
}

func (r *remote) Received() (taken, of int64) {
	return int64(r.size) / 2 * min(int64(r.transfers.Load()), 1), int64(r.size)
}

func (r *remote) transfer(ctx context.Context, w io.Writer) error {
	r.transfers.Add(1)
	if _, err := w.Write(make([]byte, r.size/2)); err != nil {
		return err
	}
	if r.hold != nil {
		r.begun <- struct{}{}
		select {
		case <-r.hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.err != nil {
		return r.err
	}
	_, err := w.Write(make([]byte, r.size-r.size/2))
	return err
}

func (r *remote) Disk(ctx context.Context, create image.Create) error {
	w, err := create(image.DiskName, 0)
	if err != nil {
		return err
	}
	return r.transfer(ctx, w)
}

func (r *remote) Files(ctx context.Context, paths map[string]image.File, create image.Create) error {
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		if p != "/boot/"+paths[p].Name || paths[p].MaxBytes == 0 {
			return fmt.Errorf("no file %s, or without a limit", p)
		}
		w, err := create(paths[p].Name, 0)
		if err != nil {
			return err
		}
		if err := r.transfer(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// fixture is a Puller with all that it needs, in memory.
type fixture struct {
	*Puller
	store *memory

	mu      sync.Mutex
	remotes map[string]*remote // by full reference
	asked   []string
	hold    chan struct{} // a registry that does not answer yet
	refuses error         // or not at all
	clock   time.Time
	unused  []store.Image
	collect error

	woken   chan types.UID
	removed int
	said    []string
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		store: &memory{
			images: map[store.Content]bool{}, tags: map[string]string{}, proofs: map[store.Content][]string{},
			failures: map[string]error{},
		},
		remotes: map[string]*remote{}, clock: time.Unix(1e9, 0), woken: make(chan types.UID, 99),
	}
	counter := func() prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "n_total", Help: "n"})
	}
	f.Puller = New(t.Context(), Options{
		Store: f.store, Limits: Limits{PerNode: 9, PerNamespace: 9}, Import: f.store.Import, Resolve: f.resolve, Fingerprints: fingerprints,
		Collect: func(time.Time) ([]store.Image, error) { return f.collected() },
		Wake:    func(vm types.UID) { f.woken <- vm },
		Pulled: func(vm types.UID, said string) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.said = append(f.said, string(vm)+": "+said)
		},
		Removed: func() { f.removed++ },
		Metrics: Metrics{
			Pulls: counter(), Bytes: counter(), Removals: counter(),
			Failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "n_total", Help: "n"}, []string{"reason"}),
		},
		Now: func() time.Time {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.clock
		},
	})
	return f
}

func (f *fixture) collected() ([]store.Image, error) {
	removed := f.unused
	f.unused = nil
	return removed, f.collect
}

func (f *fixture) resolve(ctx context.Context, ref image.Reference, keys image.Keychain) (Resolved, error) {
	f.mu.Lock()
	f.asked = append(f.asked, ref.String())
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return Resolved{}, ctx.Err()
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.remotes[ref.String()]
	switch {
	case f.refuses != nil:
		return Resolved{}, f.refuses
	case r == nil:
		return Resolved{}, fault.NewUser(v1alpha1.ReasonImageNotFound, fmt.Errorf("image %s: not found", ref))
	case !r.private:
		return Resolved{Digest: r.named, Fingerprint: image.Anonymous, Layers: r}, nil
	case slices.Contains(fingerprints(keys, ref), proof(ref)):
		return Resolved{Digest: r.named, Fingerprint: proof(ref), Layers: r}, nil
	}
	return Resolved{}, fault.NewUser(v1alpha1.ReasonImageUnauthorized, fmt.Errorf("image %s: refused", ref))
}

// fingerprints are those of a client without mirrors.
var fingerprints = image.New(image.Options{}).Fingerprints

// count is what a counter has counted.
func count(t *testing.T, c prometheus.Collector) float64 {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	return families[0].GetMetric()[0].GetCounter().GetValue()
}

// push puts an image into the registry, and returns it.
func (f *fixture) push(reference string, r *remote) *remote {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remotes[reference] = r
	return r
}

// answer has the registry not answer until the channel is closed; nil is at once.
func (f *fixture) answer(when chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hold = when
}

func (f *fixture) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.clock = f.clock.Add(d)
}

// team is what a pull secret of the team holds, stranger that of somebody else; none is none.
func team() (keys image.Keychain, err error) {
	err = keys.Add([]byte(`{"auths":{"quay.io":{"username":"team","password":"sesame"},"mirror.example.com":{"username":"team","password":"sesame"}}}`))
	return keys, err
}

func stranger() (keys image.Keychain, err error) {
	err = keys.Add([]byte(`{"auths":{"quay.io":{"username":"stranger","password":"please"}}}`))
	return keys, err
}

func none() (keys image.Keychain, err error) { return keys, nil }

var errNoSecret = errors.New("the pull secret is not there")

func unreadable() (keys image.Keychain, err error) { return keys, errNoSecret }

// proof is that of the team's credential.
func proof(ref image.Reference) string {
	keys, err := team()
	if err != nil {
		panic(err)
	}
	return fingerprints(keys, ref)[0]
}
