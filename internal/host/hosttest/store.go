package hosttest

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/diskformat"
	"github.com/berth-dev/berth/internal/host/store"
)

const (
	imagesDir = "/var/lib/berth/images/"
	vmsDir    = "/var/lib/berth/vms/"
	seedsDir  = "/run/berth/seeds/"
	ignition  = ".ign"
	toolsFile = "tools.iso"
)

var (
	validUID    = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	validName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
	validDigest = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)
)

// Store is the host's store, as a store.Store is. No disk takes any space.
type Store struct{ h *Host }

// guest is a guest's directory.
type guest struct {
	store.Guest
	hardware *store.Hardware
	seed     *bool // that it first started with
	disks    map[string]store.GuestDisk
	media    map[string]store.GuestDisk
	tools    bool          // it has the disk with the guest program
	copy     string        // what a disk of it is copied to, "" if there is none
	kernel   store.Content // that it keeps
}

type seed struct {
	size    int64
	content []byte // nil until it is written
}

// stored tells whether a path is that of a file in the store or on a volume.
func (h *Host) stored(file string) bool {
	dir, name := path.Split(file)
	switch {
	case dir == seedsDir:
		return h.seeds[strings.TrimSuffix(name, ".iso")] != nil // that for Ignition has its whole name
	case strings.HasPrefix(dir, vmsDir):
		g := h.guests[path.Base(dir)]
		if g == nil {
			return false
		}
		_, ok := g.disks[strings.TrimSuffix(name, ".qcow2")]
		return ok || name == toolsFile && g.tools
	}
	for _, volumes := range h.attached {
		for _, a := range volumes {
			if a.File == file && (a.Made || a.Block) {
				return true
			}
		}
	}
	for _, i := range h.images {
		if file == i.DiskPath() || file == i.KernelPath() || file == i.InitrdPath() {
			return true
		}
	}
	return false
}

// AddImage puts a content into the store: a raw disk of size bytes, or a kernel and initrd of so many.
func (h *Host) AddImage(c store.Content, size int64) store.Image {
	h.mu.Lock()
	defer h.mu.Unlock()
	i := store.Image{Content: c, Dir: imagesDir + strings.TrimPrefix(c.Digest, "sha256:")}
	if c.Kernel == "" && c.Initrd == "" {
		i.Format, i.VirtualSize, i.Allocated = diskformat.Raw, size, size
	} else {
		i.BootSize = size
		i.Dir += "-kernel" + strings.ReplaceAll(c.Kernel+"-"+c.Initrd, "/", "-")
	}
	h.images[c] = i
	return i
}

// Ignition returns a guest's configuration for Ignition; nil if there is none.
func (h *Host) Ignition(uid string) []byte { return h.Seed(uid + ignition) }

// Seed returns what was written into a guest's seed; nil if there is none, or nothing was.
func (h *Host) Seed(uid string) []byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	if s := h.seeds[uid]; s != nil {
		return s.content
	}
	return nil
}

// LoseGuest takes a guest's directory away, as when the file system of the store is not mounted. It comes back by
// giveBack, in place of another one. It is false if there is none, or a QEMU has it open.
func (h *Host) LoseGuest(uid string) (giveBack func(), lost bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	had := h.guests[uid]
	if had == nil || len(h.qemus[uid]) > 0 {
		return nil, false
	}
	delete(h.guests, uid)
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.guests[uid] = had
	}, true
}

func checkUID(uid string) error {
	if !validUID.MatchString(uid) {
		return fmt.Errorf("%q is no UID of a VirtualMachine", uid)
	}
	return nil
}

// EnsureGuest is as store.Store's.
func (s *Store) EnsureGuest(id store.Identity) (user int, err error) {
	if err := checkUID(id.UID); err != nil {
		return 0, err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if g := s.h.guests[id.UID]; g != nil {
		return g.User, nil
	}
	user = store.FirstUser + s.h.claims
	s.h.claims++
	s.h.guests[id.UID] = &guest{Guest: store.Guest{Identity: id, User: user}, disks: map[string]store.GuestDisk{}, media: map[string]store.GuestDisk{}}
	return user, nil
}

// Hardware is as store.Store's.
func (s *Store) Hardware(uid string, first store.Hardware) (store.Hardware, error) {
	if err := checkUID(uid); err != nil {
		return store.Hardware{}, err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	g := s.h.guests[uid]
	if g == nil {
		return store.Hardware{}, fault.NewUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf("the record of guest %s is missing", uid))
	}
	if g.hardware == nil {
		g.hardware = &first
	}
	return *g.hardware, nil
}

// RanWithoutSeed is as store.Store's.
func (s *Store) RanWithoutSeed(uid string) (bool, error) {
	if err := checkUID(uid); err != nil {
		return false, err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	g := s.h.guests[uid]
	return g != nil && g.seed != nil && !*g.seed, nil
}

// RecordSeed is as store.Store's.
func (s *Store) RecordSeed(uid string, seed bool) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	g := s.h.guests[uid]
	if g == nil {
		return fault.NewUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf("the record of guest %s is missing", uid))
	}
	if g.seed == nil {
		g.seed = &seed
	}
	return nil
}

// LinkTools is as store.Store's.
func (s *Store) LinkTools(uid string, _ store.Tools) (string, error) {
	if err := checkUID(uid); err != nil {
		return "", err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	g := s.h.guests[uid]
	if g == nil {
		return "", fmt.Errorf("giving the guest program to guest %s: %w", uid, fs.ErrNotExist)
	}
	g.tools = true
	return vmsDir + uid + "/" + toolsFile, nil
}

// Has is as store.Store's.
func (s *Store) Has(uid string) (bool, error) {
	if err := checkUID(uid); err != nil {
		return false, err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return s.h.guests[uid] != nil, nil
}

// List is as store.Store's.
func (s *Store) List() (guests []store.Guest, err error) {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	for _, uid := range slices.Sorted(maps.Keys(s.h.guests)) {
		guests = append(guests, s.h.guests[uid].Guest)
	}
	return guests, nil
}

// Remove is as store.Store's.
func (s *Store) Remove(uid string) error {
	if err := s.RemoveSeed(uid); err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	g := s.h.guests[uid]
	if g == nil {
		return nil
	}
	for _, d := range g.disks {
		s.h.removed(uid, d.Path)
	}
	delete(s.h.guests, uid)
	if g.copy != "" { // whoever writes it does so on, and loses nothing
		return os.Remove(g.copy)
	}
	return nil
}

// removed notes that a file of a guest was removed, which nobody may have open.
func (h *Host) removed(uid, file string) {
	if h.uses(uid, file) {
		h.breach("%s was removed while a QEMU of %s had it open", file, uid)
	}
}

// Disks is as store.Store's.
func (s *Store) Disks(uid string) (disks []store.GuestDisk, err error) {
	if err := checkUID(uid); err != nil {
		return nil, err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	g := s.h.guests[uid]
	if g == nil {
		return nil, nil
	}
	for _, all := range []map[string]store.GuestDisk{g.disks, g.media} {
		disks = slices.AppendSeq(disks, maps.Values(all))
	}
	slices.SortFunc(disks, func(a, b store.GuestDisk) int { return strings.Compare(a.Name, b.Name) })
	return disks, nil
}

// SetMedium is as store.Store's.
func (s *Store) SetMedium(uid, name, reference string, c store.Content) error {
	return s.change("recording the medium of", uid, name, func(g *guest) error {
		if c == (store.Content{}) {
			delete(g.media, name)
			return nil
		}
		base, ok := s.h.images[c]
		if !ok {
			return fs.ErrNotExist
		}
		g.media[name] = store.GuestDisk{
			Name: name, CDROM: true, Path: base.DiskPath(), Record: store.Record{Image: reference, Ephemeral: true}, Base: base, VirtualSize: base.VirtualSize,
		}
		return nil
	})
}

// RemoveDisk is as store.Store's.
func (s *Store) RemoveDisk(uid, name string) error {
	err := s.change("removing", uid, name, func(g *guest) error {
		if d, ok := g.disks[name]; ok {
			s.h.removed(uid, d.Path)
		}
		delete(g.disks, name)
		delete(g.media, name)
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// change does what concerns one disk of a guest.
func (s *Store) change(doing, uid, name string, do func(g *guest) error) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	if !validName.MatchString(name) {
		return fmt.Errorf("%q is no name of a disk", name)
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	err := fs.ErrNotExist
	if g := s.h.guests[uid]; g != nil {
		err = do(g)
	}
	if err != nil {
		return fmt.Errorf("%s disk %s of guest %s: %w", doing, name, uid, err)
	}
	return nil
}

// Overlay is as store.Store's.
func (s *Store) Overlay(uid string, o store.Overlay) (store.GuestDisk, error) {
	return s.overlay(uid, o, false)
}

// RecreateOverlay is as store.Store's.
func (s *Store) RecreateOverlay(uid string, o store.Overlay) (store.GuestDisk, error) {
	return s.overlay(uid, o, true)
}

func (s *Store) overlay(uid string, o store.Overlay, anew bool) (store.GuestDisk, error) {
	if err := checkUID(uid); err != nil {
		return store.GuestDisk{}, err
	}
	if !validName.MatchString(o.Name) {
		return store.GuestDisk{}, fmt.Errorf("%q is no name of a disk", o.Name)
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	g := s.h.guests[uid]
	if g == nil {
		return store.GuestDisk{}, fmt.Errorf("making disk %s of guest %s: %w", o.Name, uid, fs.ErrNotExist)
	}
	had, ok := g.disks[o.Name]
	if ok && !anew {
		return had, nil
	}
	if ok {
		s.h.removed(uid, had.Path)
		delete(g.disks, o.Name)
	}
	base, ok := s.h.images[o.Base]
	if !ok && o.Base != (store.Content{}) {
		return store.GuestDisk{}, fmt.Errorf("making disk %s of guest %s: image %s: %w", o.Name, uid, o.Base.Digest, fs.ErrNotExist)
	}
	if o.Size == 0 && o.MaxSize > 0 && base.VirtualSize > o.MaxSize {
		return store.GuestDisk{}, fault.NewUser(v1alpha1.ReasonDiskTooSmall, fmt.Errorf("disk %s: its image has %d bytes: give it a size", o.Name, base.VirtualSize))
	}
	if o.Size == 0 {
		o.Size = base.VirtualSize
	}
	if o.Size == 0 {
		return store.GuestDisk{}, fmt.Errorf("disk %s: a blank disk of no size", o.Name)
	}
	if o.Size < base.VirtualSize {
		return store.GuestDisk{}, fault.NewUser(v1alpha1.ReasonDiskTooSmall,
			fmt.Errorf("disk %s: its size of %d bytes is less than its image's %d", o.Name, o.Size, base.VirtualSize))
	}
	d := store.GuestDisk{Name: o.Name, Path: vmsDir + uid + "/" + o.Name + ".qcow2", Record: o.Record, VirtualSize: o.Size, Base: base}
	g.disks[o.Name] = d
	return d, nil
}

// PinKernel is as store.Store's.
func (s *Store) PinKernel(uid string, c store.Content) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	g := s.h.guests[uid]
	if _, ok := s.h.images[c]; !ok || g == nil {
		return fmt.Errorf("keeping the kernel of guest %s: %w", uid, fs.ErrNotExist)
	}
	g.kernel = c
	return nil
}

// Image is as store.Store's.
func (s *Store) Image(c store.Content) (store.Image, error) {
	if err := checkDigest(c); err != nil {
		return store.Image{}, err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	i, ok := s.h.images[c]
	if !ok {
		return store.Image{}, fmt.Errorf("reading image %s: %w", c.Digest, fs.ErrNotExist)
	}
	return i, nil
}

func checkDigest(c store.Content) error {
	if !validDigest.MatchString(c.Digest) {
		return fmt.Errorf("%q is no sha256 digest", c.Digest)
	}
	return nil
}

// RemoveImage is as store.Store's.
func (s *Store) RemoveImage(c store.Content) error {
	if err := checkDigest(c); err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	for _, g := range s.h.guests {
		used := g.kernel == c
		for _, all := range []map[string]store.GuestDisk{g.disks, g.media} {
			for _, d := range all {
				used = used || d.Base.Content == c
			}
		}
		if used {
			return fmt.Errorf("removing image %s: %w", c.Digest, store.ErrInUse)
		}
	}
	delete(s.h.images, c)
	return nil
}

// CreateSeed is as store.Store's.
func (s *Store) CreateSeed(uid string, size int64, _ int) (file string, err error) {
	if err := checkUID(uid); err != nil {
		return "", err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.h.seeds[uid] == nil {
		s.h.seeds[uid] = &seed{size: size}
	}
	return seedsDir + uid + ".iso", nil
}

// WriteSeed is as store.Store's, but keeps b.
func (s *Store) WriteSeed(uid string, b []byte) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	has := s.h.seeds[uid]
	var err error
	switch {
	case has == nil:
		err = fs.ErrNotExist
	case has.size != int64(len(b)):
		err = errors.New("it has another size")
	default:
		has.content = b
		return nil
	}
	return fmt.Errorf("writing the seed of guest %s: %w", uid, err)
}

// WriteIgnition is as store.Store's, but keeps config.
func (s *Store) WriteIgnition(uid string, config []byte, _ int) (file string, err error) {
	if err := checkUID(uid); err != nil {
		return "", err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.h.seeds[uid+ignition] = &seed{content: config}
	return seedsDir + uid + ignition, nil
}

// HasSeed is as store.Store's.
func (s *Store) HasSeed(uid string) (bool, error) {
	if err := checkUID(uid); err != nil {
		return false, err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	return s.h.seeds[uid] != nil || s.h.seeds[uid+ignition] != nil, nil
}

// RemoveSeed is as store.Store's.
func (s *Store) RemoveSeed(uid string) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	if s.h.seeds[uid] != nil {
		s.h.removed(uid, seedsDir+uid+".iso")
		delete(s.h.seeds, uid)
	}
	delete(s.h.seeds, uid+ignition)
	return nil
}

// TakesDirectIO is as store.Store's, on an ordinary file system.
func (s *Store) TakesDirectIO(string) bool { return true }
