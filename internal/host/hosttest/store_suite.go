package hosttest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/diskformat"
	"github.com/berth-dev/berth/internal/host/store"
)

// Guests is what TestStore asks a store.Store of guests.
type Guests interface {
	EnsureGuest(id store.Identity) (user int, err error)
	Hardware(uid string, first store.Hardware) (store.Hardware, error)
	Has(uid string) (bool, error)
	List() ([]store.Guest, error)
	Remove(uid string) error
}

// Disks is what TestStore asks a store.Store of guests' disks.
type Disks interface {
	Disks(uid string) ([]store.GuestDisk, error)
	Overlay(uid string, o store.Overlay) (store.GuestDisk, error)
	RecreateOverlay(uid string, o store.Overlay) (store.GuestDisk, error)
	PinKernel(uid string, c store.Content) error
}

// LiveDisks is what TestStore asks a store.Store of disks that change while their guest runs.
type LiveDisks interface {
	SetMedium(uid, name, reference string, c store.Content) error
	RemoveDisk(uid, name string) error
}

// Images is what TestStore asks a store.Store of images.
type Images interface {
	Image(c store.Content) (store.Image, error)
	RemoveImage(c store.Content) error
}

// Seeds is what TestStore asks a store.Store of seeds.
type Seeds interface {
	CreateSeed(uid string, size int64, user int) (path string, err error)
	WriteSeed(uid string, b []byte) error
	WriteIgnition(uid string, config []byte, user int) (string, error)
	HasSeed(uid string) (bool, error)
	RemoveSeed(uid string) error
}

// FirstStarts is what TestStore asks a store.Store of what guests start with.
type FirstStarts interface {
	RanWithoutSeed(uid string) (bool, error)
	RecordSeed(uid string, seed bool) error
	LinkTools(uid string, t store.Tools) (path string, err error)
}

// Commits is what TestStore asks a store.Store of copies of guests' disks.
type Commits interface {
	CreateCommit(uid string, size, needs int64, user int) (path string, err error)
	EndCommit(uid string, free func() error) error
}

// StoreSetup is a store to be tested.
type StoreSetup struct {
	Guests
	Disks
	LiveDisks
	Images
	Seeds
	FirstStarts
	Commits
	// AddImage puts a raw disk of size bytes, or a kernel, into the store.
	AddImage func(t *testing.T, c store.Content, size int64)
}

const mib = 1 << 20

// Contents of the tests: two disks, the second of which is larger, and a kernel.
var (
	small  = store.Content{Digest: "sha256:1111111111111111111111111111111111111111111111111111111111111111"}
	large  = store.Content{Digest: "sha256:2222222222222222222222222222222222222222222222222222222222222222"}
	kernel = store.Content{Digest: "sha256:3333333333333333333333333333333333333333333333333333333333333333", Kernel: "/vmlinuz"}
	absent = store.Content{Digest: "sha256:4444444444444444444444444444444444444444444444444444444444444444"}
)

// TestStore tests what holds of every store as the agent sees it. open returns one that is empty.
func TestStore(t *testing.T, open func(t *testing.T) StoreSetup) {
	for name, test := range map[string]func(*testing.T, StoreSetup){
		"it has images": testImages,
		"a guest has its user and its directory for life": testGuests,
		"a guest keeps its first hardware":                testHardware,
		"a guest's first start is known":                  testFirstStart,
		"a disk is made once":                             testOverlay,
		"an ephemeral disk is made anew":                  testRecreate,
		"a disk is refused":                               testOverlayRefused,
		"a CD-ROM keeps its medium":                       testMedium,
		"a disk is removed":                               testRemoveDisk,
		"what guests need stays":                          testKeep,
		"a seed comes and goes":                           testSeed,
		"a copy of a disk comes and goes":                 testCommit,
		"nothing is left of a guest":                      testRemove,
		"what is no UID is refused":                       testUIDs,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			s.AddImage(t, small, mib)
			s.AddImage(t, large, 2*mib)
			s.AddImage(t, kernel, 1)
			test(t, s)
		})
	}
}

// claim makes a guest.
func (s StoreSetup) claim(t *testing.T) (uid string, user int) {
	t.Helper()
	uid = uuid.NewString()
	user, err := s.EnsureGuest(store.Identity{Namespace: "default", Name: "web", UID: uid})
	if err != nil {
		t.Fatal(err)
	}
	return uid, user
}

// expectDisks compares a guest's disks with what making them told.
func (s StoreSetup) expectDisks(t *testing.T, uid string, want ...store.GuestDisk) {
	t.Helper()
	got, err := s.Disks.Disks(uid)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("disks (-want +got):\n%s", diff)
	}
}

func (s StoreSetup) make(t *testing.T, how func(string, store.Overlay) (store.GuestDisk, error), uid string, o store.Overlay, size int64) store.GuestDisk {
	t.Helper()
	d, err := how(uid, o)
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != o.Name || d.Record != o.Record || d.Base.Content != o.Base || d.VirtualSize != size || !filepath.IsAbs(d.Path) {
		t.Errorf("made %+v of %+v", d, o)
	}
	return d
}

func expectAbsence(t *testing.T, doing string, err error) {
	t.Helper()
	if !errors.Is(err, fs.ErrNotExist) || fault.ClassOf(err) != fault.Internal {
		t.Errorf("%s: %v, want an error that something does not exist", doing, err)
	}
}

func testImages(t *testing.T, s StoreSetup) {
	for c, want := range map[store.Content]store.Image{
		small: {Format: diskformat.Raw, VirtualSize: mib}, large: {Format: diskformat.Raw, VirtualSize: 2 * mib}, kernel: {},
	} {
		got, err := s.Image(c)
		if err != nil {
			t.Fatal(err)
		}
		if got.Content != c || got.Format != want.Format || got.VirtualSize != want.VirtualSize || !filepath.IsAbs(got.Dir) {
			t.Errorf("%+v is %+v", c, got)
		}
		if got.InitrdPath() != "" {
			t.Errorf("%+v has an initial RAM disk", c)
		}
	}
	_, err := s.Image(absent)
	expectAbsence(t, "looking up", err)
	if _, err := s.Image(store.Content{Digest: "../x"}); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of no digest: %v", err)
	}
}

func testGuests(t *testing.T, s StoreSetup) {
	if guests, err := s.List(); len(guests) > 0 || err != nil {
		t.Errorf("at first: %+v, %v", guests, err)
	}
	uid, user := s.claim(t)
	if user < store.FirstUser || user >= store.FirstUser+store.Users {
		t.Errorf("user %d", user)
	}
	if again, err := s.EnsureGuest(store.Identity{Namespace: "default", Name: "renamed", UID: uid}); again != user || err != nil {
		t.Errorf("user %d, then %d, %v", user, again, err)
	}
	other, otherUser := s.claim(t)
	if otherUser == user {
		t.Errorf("two guests have user %d", user)
	}
	want := []store.Guest{{Identity: store.Identity{Namespace: "default", Name: "web", UID: uid}, User: user}, {Identity: store.Identity{Namespace: "default", Name: "web", UID: other}, User: otherUser}}
	if uid > other {
		want[0], want[1] = want[1], want[0]
	}
	guests, err := s.List()
	if diff := cmp.Diff(want, guests); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for id, want := range map[string]bool{uid: true, other: true, uuid.NewString(): false} {
		if has, err := s.Has(id); has != want || err != nil {
			t.Errorf("it has guest %s: %v, %v", id, has, err)
		}
	}
}

func testHardware(t *testing.T, s StoreSetup) {
	uid, _ := s.claim(t)
	want := store.Hardware{Layout: 2, Machine: "pc-q35-7.2"}
	for _, first := range []store.Hardware{want, {Layout: 3, Machine: "pc-q35-9.0"}} {
		if got, err := s.Hardware(uid, first); got != want || err != nil {
			t.Errorf("%+v, %v", got, err)
		}
	}
	_, err := s.Hardware(uuid.NewString(), want)
	expectFault(t, "of no guest", err, fault.User, v1alpha1.ReasonHardwareUnknown)
}

func testOverlay(t *testing.T, s StoreSetup) {
	uid, user := s.claim(t)
	s.expectDisks(t, uid)
	root := s.make(t, s.Overlay, uid, store.Overlay{Name: "root", Record: store.Record{Image: "a", Ephemeral: true}, Base: small, Size: 5 * mib, User: user}, 5*mib)
	if image, err := s.Image(small); err != nil || root.Base != image {
		t.Errorf("it is over %+v, want %+v, %v", root.Base, image, err)
	}
	data := s.make(t, s.Overlay, uid, store.Overlay{Name: "data", Base: large, User: user}, 2*mib)
	scratch := s.make(t, s.Overlay, uid, store.Overlay{Name: "scratch", Size: 3 * mib, User: user}, 3*mib)
	if scratch.Base != (store.Image{}) {
		t.Errorf("a blank disk is over %+v", scratch.Base)
	}
	s.expectDisks(t, uid, data, root, scratch)
	for _, base := range []store.Content{small, large, absent} {
		again, err := s.Overlay(uid, store.Overlay{Name: "root", Record: store.Record{Image: "b"}, Base: base, Size: 9 * mib, User: user})
		if diff := cmp.Diff(root, again); diff != "" || err != nil {
			t.Errorf("made again: %v (-first +again)\n%s", err, diff)
		}
	}
	other, otherUser := s.claim(t)
	if d := s.make(t, s.Overlay, other, store.Overlay{Name: "root", Base: small, User: otherUser}, mib); d.Path == root.Path {
		t.Error("two guests share a disk")
	}
	s.expectDisks(t, uid, data, root, scratch)
}

func testRecreate(t *testing.T, s StoreSetup) {
	uid, user := s.claim(t)
	s.make(t, s.RecreateOverlay, uid, store.Overlay{Name: "root", Base: small, User: user}, mib) // there is none to replace
	for range 2 {
		anew := s.make(t, s.RecreateOverlay, uid, store.Overlay{Name: "root", Record: store.Record{Image: "b", Ephemeral: true}, Base: large, Size: 3 * mib, User: user}, 3*mib)
		s.expectDisks(t, uid, anew)
	}
	blank := s.make(t, s.RecreateOverlay, uid, store.Overlay{Name: "root", Size: 3 * mib, User: user}, 3*mib)
	s.expectDisks(t, uid, blank)
}

func testOverlayRefused(t *testing.T, s StoreSetup) {
	uid, user := s.claim(t)
	for _, how := range []func(string, store.Overlay) (store.GuestDisk, error){s.Overlay, s.RecreateOverlay} {
		_, err := how(uid, store.Overlay{Name: "root", Base: large, Size: mib, User: user})
		expectFault(t, "one smaller than its image", err, fault.User, v1alpha1.ReasonDiskTooSmall)
		_, err = how(uid, store.Overlay{Name: "root", Base: large, MaxSize: 2*mib - 512, User: user})
		expectFault(t, "one without size whose image is larger than such disks may be", err, fault.User, v1alpha1.ReasonDiskTooSmall)
		if _, err = how(uid, store.Overlay{Name: "root", User: user}); err == nil {
			t.Error("a blank disk without size is made")
		}
		_, err = how(uid, store.Overlay{Name: "root", Base: absent, User: user})
		expectAbsence(t, "one without its image", err)
		_, err = how(uuid.NewString(), store.Overlay{Name: "root", Base: small, User: user})
		expectAbsence(t, "one of no guest", err)
		for _, name := range []string{"", "..", "a/b", "../../x", ".hidden", "a.b"} {
			if _, err := how(uid, store.Overlay{Name: name, Base: small, User: user}); err == nil {
				t.Errorf("name %q was taken", name)
			}
		}
	}
	s.expectDisks(t, uid)
}

func testMedium(t *testing.T, s StoreSetup) {
	uid, user := s.claim(t)
	set := func(reference string, c store.Content) {
		t.Helper()
		for range 2 {
			if err := s.SetMedium(uid, "install", reference, c); err != nil {
				t.Error(err)
			}
		}
	}
	medium := func(reference string, c store.Content) store.GuestDisk {
		t.Helper()
		image, err := s.Image(c)
		if err != nil {
			t.Fatal(err)
		}
		return store.GuestDisk{
			Name: "install", CDROM: true, Path: image.DiskPath(), Record: store.Record{Image: reference, Ephemeral: true}, Base: image, VirtualSize: image.VirtualSize,
		}
	}
	set("", store.Content{})
	s.expectDisks(t, uid)
	root := s.make(t, s.Overlay, uid, store.Overlay{Name: "root", Base: small, User: user}, mib)
	set("a", small)
	s.expectDisks(t, uid, medium("a", small), root)
	set("b", large)
	s.expectDisks(t, uid, medium("b", large), root)
	set("c", large)
	s.expectDisks(t, uid, medium("c", large), root)
	if err := s.RemoveImage(large); !errors.Is(err, store.ErrInUse) {
		t.Errorf("removing the medium's image: %v", err)
	}
	expectAbsence(t, "a medium that is absent", s.SetMedium(uid, "install", "d", absent))
	s.expectDisks(t, uid, medium("c", large), root)
	expectAbsence(t, "one of no guest", s.SetMedium(uuid.NewString(), "install", "a", small))
	set("", store.Content{})
	s.expectDisks(t, uid, root)
	if err := s.RemoveImage(large); err != nil {
		t.Errorf("removing the image of a medium that was taken out: %v", err)
	}
	set("a", small)
	if err := s.RemoveDisk(uid, "install"); err != nil {
		t.Error(err)
	}
	s.expectDisks(t, uid, root)
}

func testRemoveDisk(t *testing.T, s StoreSetup) {
	uid, user := s.claim(t)
	root := s.make(t, s.Overlay, uid, store.Overlay{Name: "root", Base: small, User: user}, mib)
	for _, o := range []store.Overlay{
		{Name: "data", Record: store.Record{Image: "b"}, Base: large, Size: 3 * mib, User: user}, {Name: "data", Size: 5 * mib, User: user},
	} {
		data := s.make(t, s.Overlay, uid, o, o.Size)
		s.expectDisks(t, uid, data, root)
		for range 2 {
			if err := s.RemoveDisk(uid, "data"); err != nil {
				t.Error(err)
			}
			s.expectDisks(t, uid, root)
		}
	}
	if err := s.RemoveImage(large); err != nil {
		t.Errorf("removing the image of a disk that was removed: %v", err)
	}
	for _, name := range []string{"", "..", "a/b", "root.qcow2"} {
		if err := s.RemoveDisk(uid, name); err == nil {
			t.Errorf("name %q was taken", name)
		}
	}
	if err := s.RemoveDisk(uuid.NewString(), "data"); err != nil {
		t.Errorf("one of no guest: %v", err)
	}
	s.expectDisks(t, uid, root)
}

func testKeep(t *testing.T, s StoreSetup) {
	remove := func(c store.Content, want error) {
		t.Helper()
		if err := s.RemoveImage(c); !errors.Is(err, want) {
			t.Errorf("removing image %+v: %v, want %v", c, err, want)
		}
		if _, err := s.Image(c); want != nil && err != nil {
			t.Errorf("it is gone: %v", err)
		}
	}
	uid, user := s.claim(t)
	s.make(t, s.Overlay, uid, store.Overlay{Name: "kernel", Base: small, User: user}, mib)
	for range 2 {
		if err := s.PinKernel(uid, kernel); err != nil {
			t.Fatal(err)
		}
	}
	expectAbsence(t, "keeping what is absent", s.PinKernel(uid, absent))
	expectAbsence(t, "keeping it for no guest", s.PinKernel(uuid.NewString(), kernel))
	remove(small, store.ErrInUse)
	remove(kernel, store.ErrInUse)
	for range 2 {
		remove(large, nil)
	}
	_, err := s.Image(large)
	expectAbsence(t, "looking for a removed one", err)

	other := store.Content{Digest: kernel.Digest, Kernel: "/vmlinuz", Initrd: "/initrd"}
	s.AddImage(t, other, 1)
	if err := s.PinKernel(uid, other); err != nil {
		t.Fatal(err)
	}
	remove(kernel, nil)
	remove(other, store.ErrInUse)
	if err := s.Remove(uid); err != nil {
		t.Fatal(err)
	}
	remove(small, nil)
	remove(other, nil)
}

// toolsOf is a disk with those bytes.
func toolsOf(image string) store.Tools {
	return store.Tools{Digest: fmt.Sprintf("%x", sha256.Sum256([]byte(image))), Image: func() ([]byte, error) { return []byte(image), nil }}
}

func testFirstStart(t *testing.T, s StoreSetup) {
	for _, seed := range []bool{true, false} {
		uid, _ := s.claim(t)
		without := func(want bool) {
			t.Helper()
			if got, err := s.RanWithoutSeed(uid); got != want || err != nil {
				t.Errorf("it ran without a seed: %t, %v, want %t", got, err, want)
			}
		}
		without(false)
		for _, again := range []bool{seed, true, false} {
			if err := s.RecordSeed(uid, again); err != nil {
				t.Error(err)
			}
			without(!seed)
		}
		if _, err := s.Hardware(uid, store.Hardware{Layout: 2, Machine: "pc-q35-7.2"}); err != nil {
			t.Error(err)
		}
		without(!seed)
		first, err := s.LinkTools(uid, toolsOf("version 1"))
		if err != nil || !filepath.IsAbs(first) {
			t.Errorf("its tools are %q, %v", first, err)
		}
		if again, err := s.LinkTools(uid, toolsOf("version 2")); again != first || err != nil {
			t.Errorf("then they are %q, %v", again, err)
		}
		s.expectDisks(t, uid)
	}
	uid := uuid.NewString()
	if without, err := s.RanWithoutSeed(uid); without || err != nil {
		t.Errorf("a guest that has not started ran without a seed: %t, %v", without, err)
	}
	_, err := s.LinkTools(uid, toolsOf("version 2"))
	expectAbsence(t, "tools for no guest", err)
	expectFault(t, "recording for no guest", s.RecordSeed(uid, true), fault.User, v1alpha1.ReasonHardwareUnknown)
}

func testSeed(t *testing.T, s StoreSetup) {
	uid, user := s.claim(t)
	has := func(want bool) {
		t.Helper()
		if has, err := s.HasSeed(uid); has != want || err != nil {
			t.Errorf("it has a seed: %v, %v", has, err)
		}
	}
	has(false)
	expectAbsence(t, "writing what is not there", s.WriteSeed(uid, make([]byte, mib)))
	first, err := s.CreateSeed(uid, mib, user)
	if err != nil || !filepath.IsAbs(first) {
		t.Fatalf("%q, %v", first, err)
	}
	has(true)
	for range 2 {
		if err := s.WriteSeed(uid, make([]byte, mib)); err != nil {
			t.Error(err)
		}
	}
	if err := s.WriteSeed(uid, []byte("short")); err == nil {
		t.Error("a seed of another size was written")
	}
	if again, err := s.CreateSeed(uid, 2*mib, user); again != first || err != nil || s.WriteSeed(uid, make([]byte, mib)) != nil {
		t.Errorf("made again: %q, %v", again, err)
	}
	for range 2 {
		if err := s.RemoveSeed(uid); err != nil {
			t.Error(err)
		}
		has(false)
	}
	for _, config := range []string{"{}", "{ }"} {
		if file, err := s.WriteIgnition(uid, []byte(config), user); err != nil || !filepath.IsAbs(file) || file == first {
			t.Errorf("the configuration for Ignition: %q, %v", file, err)
		}
		has(true)
	}
	if err := s.RemoveSeed(uid); err != nil {
		t.Error(err)
	}
	has(false)
}

func testCommit(t *testing.T, s StoreSetup) {
	uid, user := s.claim(t)
	calls, busy := 0, error(nil)
	end := func(wantCalls int, want error) {
		t.Helper()
		calls = 0
		err := s.EndCommit(uid, func() error { calls++; return busy })
		if !errors.Is(err, want) || calls != wantCalls {
			t.Errorf("its end: %v, after %d calls, want %v and %d", err, calls, want, wantCalls)
		}
	}
	end(0, nil)
	file, err := s.CreateCommit(uid, 64*mib, 1, user)
	if err != nil || !filepath.IsAbs(file) {
		t.Fatalf("%q, %v", file, err)
	}
	if raw, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(raw), "QFI\xfb") {
		t.Errorf("it has %d bytes, %v", len(raw), err)
	}
	s.expectDisks(t, uid)
	busy = errors.New("QEMU has it")
	for range 2 {
		end(1, busy)
		if st, err := os.Stat(file); err != nil || st.Size() > 0 {
			t.Errorf("while it is used: %v, %v", st, err)
		}
	}
	busy = nil
	end(1, nil)
	end(0, nil)
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it is left: %v", err)
	}
	if again, err := s.CreateCommit(uid, 64*mib, 1, user); again != file || err != nil {
		t.Errorf("another: %q, %v, want %q", again, err, file)
	}
	if err := s.Remove(uid); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it outlives the guest: %v", err)
	}
	end(0, nil)
	_, err = s.CreateCommit(uuid.NewString(), mib, 1, user)
	expectAbsence(t, "one of no guest", err)
}

func testRemove(t *testing.T, s StoreSetup) {
	other, otherUser := s.claim(t)
	stays := s.make(t, s.Overlay, other, store.Overlay{Name: "root", Base: small, User: otherUser}, mib)
	uid, user := s.claim(t)
	s.make(t, s.Overlay, uid, store.Overlay{Name: "root", Base: small, User: user}, mib)
	if _, err := s.CreateSeed(uid, mib, user); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Remove(uid); err != nil {
			t.Error(err)
		}
		s.expectDisks(t, uid)
		seed, seedErr := s.HasSeed(uid)
		if has, err := s.Has(uid); has || seed || err != nil || seedErr != nil {
			t.Errorf("it has the guest: %v, %v; its seed: %v, %v", has, err, seed, seedErr)
		}
	}
	if guests, err := s.List(); len(guests) != 1 || guests[0].UID != other || err != nil {
		t.Errorf("%+v, %v", guests, err)
	}
	s.expectDisks(t, other, stays)
	if _, err := s.EnsureGuest(store.Identity{UID: uid}); err != nil {
		t.Errorf("claimed anew: %v", err)
	}
	s.expectDisks(t, uid)
}

func testUIDs(t *testing.T, s StoreSetup) {
	for _, uid := range []string{"", "..", uuid.NewString() + "/..", "../images", "ABCDEF00-0000-0000-0000-000000000000"} {
		o := store.Overlay{Name: "root", Base: small, User: store.FirstUser}
		_, claimErr := s.EnsureGuest(store.Identity{UID: uid})
		_, hardwareErr := s.Hardware(uid, store.Hardware{Machine: "q35"})
		_, hasErr := s.Has(uid)
		_, disksErr := s.Disks.Disks(uid)
		_, overlayErr := s.Overlay(uid, o)
		_, recreateErr := s.RecreateOverlay(uid, o)
		_, seedErr := s.CreateSeed(uid, mib, store.FirstUser)
		_, withoutErr := s.RanWithoutSeed(uid)
		_, toolsErr := s.LinkTools(uid, toolsOf("version 2"))
		_, hasSeedErr := s.HasSeed(uid)
		_, ignitionErr := s.WriteIgnition(uid, nil, store.FirstUser)
		_, commitErr := s.CreateCommit(uid, mib, 1, store.FirstUser)
		for doing, err := range map[string]error{
			"claiming": claimErr, "its hardware": hardwareErr, "looking for it": hasErr, "its disks": disksErr, "making a disk": overlayErr,
			"making a disk anew": recreateErr, "keeping its kernel": s.PinKernel(uid, kernel), "its medium": s.SetMedium(uid, "root", "a", small),
			"removing a disk": s.RemoveDisk(uid, "root"), "removing it": s.Remove(uid),
			"making its seed": seedErr, "looking for its seed": hasSeedErr, "writing its seed": s.WriteSeed(uid, nil),
			"its first start": withoutErr, "recording that": s.RecordSeed(uid, true), "its tools": toolsErr, "removing its seed": s.RemoveSeed(uid),
			"its Ignition": ignitionErr, "copying a disk": commitErr, "the copy's end": s.EndCommit(uid, func() error { return nil }),
		} {
			if err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("UID %q, %s: %v", uid, doing, err)
			}
		}
	}
}
