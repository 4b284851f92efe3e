package host

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
)

// fakeLibvirt has the domains of xml, by UUID, and in its list perhaps others that have ended.
type fakeLibvirt struct {
	root  string
	xml   map[string]string
	list  map[string]libvirtd.Domain
	err   error // of all but HostFacts
	facts libvirtd.HostFacts

	asks    atomic.Int32 // how often facts were asked for
	answers chan answer  // each answer waits to be sent; nil is facts at once
}

type answer struct {
	facts libvirtd.HostFacts
	err   error
}

func (f *fakeLibvirt) HostFacts(context.Context) (libvirtd.HostFacts, error) {
	f.asks.Add(1)
	if f.answers == nil {
		return f.facts, nil
	}
	a := <-f.answers
	return a.facts, a.err
}

func (f *fakeLibvirt) Root() (string, error) { return f.root, f.err }

func (f *fakeLibvirt) States(context.Context) (map[string]libvirtd.Domain, error) {
	return f.list, f.err
}

func (f *fakeLibvirt) Domain(_ context.Context, uuid string) (libvirtd.Domain, error) {
	xml, exists := f.xml[uuid]
	return libvirtd.Domain{Exists: exists, XML: xml}, f.err
}

// fakeStore has guests and images.
type fakeStore struct {
	guests []store.Guest
	images []store.Image
	err    error // of all but Check

	strays  map[string]time.Time // since when guests are strays
	markErr error
	removed []string

	id, wanted string       // its ID, and the one that was asked for last
	notThis    error        // why it is not that
	looks      atomic.Int32 // how often it was checked
	failure    atomic.Pointer[error]
}

func (f *fakeStore) Check() error {
	f.looks.Add(1)
	if err := f.failure.Load(); err != nil {
		return *err
	}
	return nil
}

func (f *fakeStore) Identify(want string) (string, error) {
	f.wanted = want
	return f.id, f.notThis
}

func (f *fakeStore) List() ([]store.Guest, error) { return f.guests, f.err }

func (f *fakeStore) Images() ([]store.Image, error) { return f.images, f.err }

func (f *fakeStore) Usage() (size int64, percent int32, err error) { return 1 << 40, 43, f.err }

func (f *fakeStore) MarkStray(uid string) (time.Time, error) { return f.strays[uid], f.markErr }

func (f *fakeStore) UnmarkStray(uid string) error {
	delete(f.strays, uid)
	return nil
}

func (f *fakeStore) Allocated(string) (int64, error) { return 1 << 20, nil }

func (f *fakeStore) Remove(uid string) error {
	f.removed = append(f.removed, uid)
	return nil
}

func (f *fakeStore) Has(uid string) (bool, error) {
	for _, g := range f.guests {
		if g.UID == uid {
			return true, f.err
		}
	}
	return false, f.err
}

// attachable is a host that can give guests the volumes of claims.
func attachable(context.Context) error { return nil }
