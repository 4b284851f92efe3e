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
	imports  map[string]*job  // by source and content
	failures map[string]error // by method
	joined   chan struct{}    // is told of each import that was joined
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

func (m *memory) Recall(reference string) (digest string, err error) {
	err = m.do("Recall", func() { digest = m.tags[reference] })
	return digest, err
}

func (m *memory) Remember(reference, digest string) error {
	return m.do("Remember", func() { m.tags[reference] = digest })
}

func (m *memory) Allowed(c store.Content, proofs []string) (may bool, err error) {
	err = m.do("Allowed", func() {
		may = slices.ContainsFunc(proofs, func(p string) bool { return slices.Contains(m.proofs[c], p) })
	})
	return may, err
}

func (m *memory) Allow(c store.Content, proof string) error {
	return m.do("Allow", func() { m.proofs[c] = append(m.proofs[c], proof) })
}

// Import joins the import of the same content from the same source, as the real store does.
func (m *memory) Import(ctx context.Context, c store.Content, source string, fetch store.Fetch) Import {
	m.mu.Lock()
	defer m.mu.Unlock()
	from := fmt.Sprint(source, c)
	if running := m.imports[from]; running != nil {
		m.joined <- struct{}{}
		return running
	}
	j := &job{done: make(chan struct{})}
	m.imports[from] = j
	j.run = sync.OnceFunc(func() {
		go func() {
			defer close(j.done)
			if _, err := m.Image(c); err != nil {
				j.err = fetch(ctx, func(string) (io.Writer, error) { return j, nil })
			}
			if err := m.do("Import", func() {}); err != nil {
				j.err = err
			}
			m.mu.Lock()
			defer m.mu.Unlock()
			m.images[c] = m.images[c] || j.err == nil
			delete(m.imports, from)
		}()
	})
	return j
}

// job runs from when it is first waited for: by then the Puller knows it.
type job struct {
	run   func()
	done  chan struct{}
	err   error
	bytes atomic.Int64
}

func (j *job) Wait() error {
	j.run()
	<-j.done
	return j.err
}

func (j *job) Bytes() int64 { return j.bytes.Load() }

func (j *job) Write(b []byte) (int, error) {
	j.bytes.Add(int64(len(b)))
	return len(b), nil
}

// remote is an image in a registry.
type remote struct {
	digest  string
	private bool // only who has the password of team may have it
	size    int
	// hold and then err come in the midst of the transfer, after half the bytes; begun is told of it.
	begun chan struct{}
	hold  chan struct{}
	err   error
}

func (r *remote) transfer(w io.Writer) error {
	if _, err := w.Write(make([]byte, r.size/2)); err != nil {
		return err
	}
	if r.hold != nil {
		r.begun <- struct{}{}
		<-r.hold
	}
	if r.err != nil {
		return r.err
	}
	_, err := w.Write(make([]byte, r.size-r.size/2))
	return err
}

func (r *remote) Disk(_ context.Context, create image.Create) error {
	w, err := create(image.DiskName)
	if err != nil {
		return err
	}
	return r.transfer(w)
}

func (r *remote) Files(_ context.Context, paths map[string]string, create image.Create) error {
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		if p != "/boot/"+paths[p] {
			return fmt.Errorf("no file %s", p)
		}
		w, err := create(paths[p])
		if err != nil {
			return err
		}
		if err := r.transfer(w); err != nil {
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
	clock   time.Time
	unused  []store.Image
	collect error

	woken   chan types.UID
	removed int
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{
		store: &memory{
			images: map[store.Content]bool{}, tags: map[string]string{}, proofs: map[store.Content][]string{},
			imports: map[string]*job{}, failures: map[string]error{}, joined: make(chan struct{}, 9),
		},
		remotes: map[string]*remote{}, clock: time.Unix(1e9, 0), woken: make(chan types.UID, 9),
	}
	counter := func() prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "n_total", Help: "n"})
	}
	f.Puller = New(t.Context(), Options{
		Store: f.store, Import: f.store.Import, Resolve: f.resolve,
		Collect: func(time.Time) ([]store.Image, error) { return f.collected() },
		Wake:    func(vm types.UID) { f.woken <- vm }, Removed: func() { f.removed++ },
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

func (f *fixture) resolve(_ context.Context, ref image.Reference, keys image.Keychain) (Resolved, error) {
	f.mu.Lock()
	f.asked = append(f.asked, ref.String())
	hold := f.hold
	f.mu.Unlock()
	if hold != nil {
		<-hold
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.remotes[ref.String()]
	switch {
	case r == nil:
		return Resolved{}, fault.ByUser(v1alpha1.ReasonImageNotFound, fmt.Errorf("image %s: not found", ref))
	case !r.private:
		return Resolved{Digest: r.digest, Proof: image.Anonymous, Layers: r}, nil
	case slices.Contains(keys.Proofs(ref), proof(ref)):
		return Resolved{Digest: r.digest, Proof: proof(ref), Layers: r}, nil
	}
	return Resolved{}, fault.ByUser(v1alpha1.ReasonImageUnauthorized, fmt.Errorf("image %s: refused", ref))
}

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
func (f *fixture) push(reference string, r remote) *remote {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.remotes[reference] = &r
	return &r
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
	return keys.Proofs(ref)[0]
}
