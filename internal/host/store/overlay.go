package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/diskformat"
)

const (
	overlaySuffix = ".qcow2"
	recordSuffix  = ".image.json" // so that a disk named vm does not collide with vm.json
)

// Overlay asks for a disk of a guest.
type Overlay struct {
	// Name is the disk's in the spec.
	Name string
	Record
	// Base is the image that shows through, which must be in the store; zero for a blank disk.
	Base Content
	// Size is what the guest sees, in bytes; 0 for the image's own, if that is at most MaxSize; which is 0 for no bound. A
	// blank disk has no other.
	Size, MaxSize int64
	// User is the guest's, of EnsureGuest.
	User int
}

// Record is what a disk was made from, as the spec had it; its digest and size can be seen. It is empty for a disk
// that somebody else made.
type Record struct {
	Image     string `json:"image"`
	Ephemeral bool   `json:"ephemeral,omitempty"`
}

// GuestDisk is a disk of a guest that is there.
type GuestDisk struct {
	Name string
	// Path is the disk's own file, of a CD-ROM its image's.
	Path string
	Record
	// VirtualSize is what the guest sees, in bytes.
	VirtualSize int64
	// Allocated is the space that it takes beyond its image, in bytes.
	Allocated int64
	// Base is the image below it, zero if it was made blank; only Content is set if it is missing.
	Base Image
	// CDROM: it is the medium of a CD-ROM drive, as SetMedium keeps it. Without its image it has no Path.
	CDROM bool
}

// Overlay makes a disk, or returns the one that is there as it is, with its own base and size. Errors: DiskTooSmall,
// StoreFull; ImageUnsafe if the disk that is there was tampered with; fs.ErrNotExist if the base is missing.
func (s *Store) Overlay(uid string, o Overlay) (GuestDisk, error) {
	return s.overlay(uid, o, func(string) error { return nil })
}

// RecreateOverlay replaces an ephemeral disk by a new one. No QEMU of the guest may be left.
func (s *Store) RecreateOverlay(uid string, o Overlay) (GuestDisk, error) {
	return s.overlay(uid, o, os.RemoveAll)
}

// overlay makes a disk unless, after prepare, there is one at its path.
func (s *Store) overlay(uid string, o Overlay, prepare func(path string) error) (GuestDisk, error) {
	return ofDisk(s, "making", uid, o.Name, func(dir string) (disk GuestDisk, err error) {
		path := filepath.Join(dir, o.Name+overlaySuffix)
		if err := prepare(path); err != nil {
			return disk, err
		}
		has, err := exists(path)
		if err == nil && !has {
			err = s.makeOverlay(dir, path, o)
		}
		if err == nil {
			disk, err = s.guestDisk(dir, o.Name)
		}
		if err == nil && disk.Base.Digest != "" && disk.Base.Dir == "" {
			err = fmt.Errorf("image %s below it is missing: %w", disk.Base.Digest, fs.ErrNotExist)
		}
		return disk, err
	})
}

func (s *Store) makeOverlay(dir, path string, o Overlay) error {
	options := diskformat.OverlayOptions{Size: o.Size}
	if o.Base == (Content{}) {
		// That of the one before, which had an image.
		if err := os.RemoveAll(filepath.Join(dir, o.Name+baseSuffix)); err != nil {
			return err
		}
	} else {
		base, err := s.Image(o.Base)
		if err != nil {
			return err
		}
		if options, err = onBase(base, o); err != nil {
			return err
		}
		// The disk comes last: one without a link would let its image be removed, one without a record would have no known origin.
		if err := linkBase(dir, o.Name, filepath.Base(base.Dir)); err != nil {
			return err
		}
	}
	b, err := diskformat.Overlay(options)
	if err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, o.Name+recordSuffix), 0o600, o.Record); err != nil {
		return err
	}
	return publish(path, 0o600, o.User, b)
}

// onBase is a disk over an image, of the size that is asked for or of the image's own.
func onBase(base Image, o Overlay) (options diskformat.OverlayOptions, err error) {
	switch {
	case o.Size == 0 && o.MaxSize > 0 && base.VirtualSize > o.MaxSize:
		return options, fault.NewUser(v1alpha1.ReasonDiskTooSmall, fmt.Errorf(
			"disk %s: its image has %d bytes, and a disk without size may have %d on this node: give it a size of at least %d", o.Name, base.VirtualSize, o.MaxSize, base.VirtualSize))
	case o.Size == 0:
		o.Size = base.VirtualSize
	case o.Size < base.VirtualSize:
		return options, fault.NewUser(v1alpha1.ReasonDiskTooSmall,
			fmt.Errorf("disk %s: its size of %d bytes is less than its image's %d: give it a larger size, or none", o.Name, o.Size, base.VirtualSize))
	}
	return diskformat.OverlayOptions{Size: o.Size, Backing: base.DiskPath(), BackingFormat: base.Format}, nil
}

// base reads which image a link names, and where it is or was. That there is no link is an error.
func (s *Store) base(link string) (image Image, dir string, err error) {
	key, err := readBase(link)
	if err != nil {
		return Image{}, "", err
	}
	dir = filepath.Join(s.images, key)
	image, err = readImage(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Image{Content: Content{Digest: digestOf(key)}}, dir, nil
	}
	return image, dir, err
}

// guestDisk inspects a disk that is there, without trust in it: QEMU may write all of its bytes.
func (s *Store) guestDisk(dir, name string) (GuestDisk, error) {
	disk := GuestDisk{Name: name, Path: filepath.Join(dir, name+overlaySuffix)}
	image, backing, err := s.base(filepath.Join(dir, name+baseSuffix)) // whose directory is what shows through
	if err != nil && !errors.Is(err, fs.ErrNotExist) {                 // without a link it was made blank
		return disk, err
	}
	disk.Base = image
	if err := readJSON(filepath.Join(dir, name+recordSuffix), &disk.Record); err != nil {
		return disk, err
	}
	f, err := os.OpenFile(disk.Path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return disk, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return disk, err
	}
	virtualSize, behind, err := diskformat.InspectOverlay(f, st.Size())
	if err != nil {
		return disk, err
	}
	if behind == "" != (backing == "") || backing != "" && filepath.Dir(behind) != backing {
		return disk, fault.NewUser(v1alpha1.ReasonImageUnsafe,
			fmt.Errorf("disk %s was tampered with: its backing file is %q, it was created on %q", name, behind, backing))
	}
	disk.VirtualSize, disk.Allocated = virtualSize, allocated(st)
	return disk, nil
}

// Disks returns a guest's disks. It is empty for a guest that has none.
func (s *Store) Disks(uid string) ([]GuestDisk, error) {
	return ofGuest(s, uid, unlocked, "reading the disks of", func(dir string) (disks []GuestDisk, err error) {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name, isDisk := strings.CutSuffix(e.Name(), overlaySuffix)
			read := s.guestDisk
			if !isDisk {
				var isMedium bool
				if name, isMedium = strings.CutSuffix(e.Name(), mediumSuffix+baseSuffix); !isMedium {
					continue
				}
				read = s.medium
			}
			d, err := read(dir, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue // removed meanwhile
			}
			if err != nil {
				return disks, fmt.Errorf("disk %s: %w", name, err)
			}
			disks = append(disks, d)
		}
		return disks, nil
	})
}

// PinKernel records that a guest starts from a kernel image, until it is removed or keeps another.
func (s *Store) PinKernel(uid string, c Content) error {
	return s.inGuest(uid, shared, "recording the kernel image of", func(dir string) error {
		image, err := s.Image(c)
		if err != nil {
			return err
		}
		// With a dot it is the name of no disk.
		return linkBase(dir, Kernel+".img", filepath.Base(image.Dir))
	})
}
