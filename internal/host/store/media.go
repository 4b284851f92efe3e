package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mediumSuffix is of the names of a CD-ROM's link and record. With a dot in it they are no disk's.
const mediumSuffix = ".cdrom"

// SetMedium records that a content, which a reference of the spec named, is the medium of a guest's CD-ROM drive, so that
// its image stays; the one before may go. The zero Content is no medium.
func (s *Store) SetMedium(uid, name, reference string, c Content) error {
	return s.withDisk("recording the medium of", uid, name, func(dir string) error {
		name += mediumSuffix
		record, key := Record{Image: reference, Ephemeral: true}, ""
		if c != (Content{}) {
			image, err := s.Image(c)
			if err != nil {
				return err
			}
			key = filepath.Base(image.Dir)
		}
		link := filepath.Join(dir, name+baseSuffix)
		had, err := readBase(link)
		if errors.Is(err, fs.ErrNotExist) {
			had = ""
		} else if err != nil {
			return err
		}
		var recorded Record
		if err := readJSON(filepath.Join(dir, name+recordSuffix), &recorded); err != nil {
			return err
		}
		if had == key && (recorded == record || key == "") {
			return nil
		}
		// The record goes first and comes last: without one, which image is in has no name, rather than a wrong one.
		if err := os.RemoveAll(filepath.Join(dir, name+recordSuffix)); err != nil {
			return err
		}
		if key == "" {
			return errors.Join(os.RemoveAll(link), syncDir(dir))
		}
		if err := linkBase(dir, name, key); err != nil {
			return err
		}
		return writeJSON(filepath.Join(dir, name+recordSuffix), 0o600, record)
	})
}

// medium reads what SetMedium recorded.
func (s *Store) medium(dir, name string) (GuestDisk, error) {
	disk := GuestDisk{Name: name, CDROM: true, Record: Record{Ephemeral: true}}
	err := readJSON(filepath.Join(dir, name+mediumSuffix+recordSuffix), &disk.Record)
	if err != nil {
		return disk, err
	}
	if disk.Base, _, err = s.base(filepath.Join(dir, name+mediumSuffix+baseSuffix)); err != nil {
		return disk, err
	}
	if disk.Base.Dir != "" {
		disk.Path, disk.VirtualSize = disk.Base.DiskPath(), disk.Base.VirtualSize
	}
	return disk, nil
}

// RemoveDisk removes a disk of a guest, or the medium of a CD-ROM drive. The caller has proven that no QEMU has it open.
// One that is absent is no error.
func (s *Store) RemoveDisk(uid, name string) error {
	err := s.withDisk("removing", uid, name, func(dir string) error {
		// The disk is listed until it is gone. Its link goes after it, without which it would be taken for one that was
		// tampered with: if that is cut off, sweep finds a link with neither disk nor record.
		for _, suffix := range []string{recordSuffix, overlaySuffix, baseSuffix, mediumSuffix + recordSuffix, mediumSuffix + baseSuffix} {
			if err := os.RemoveAll(filepath.Join(dir, name+suffix)); err != nil {
				return err
			}
			if err := syncDir(dir); err != nil {
				return err
			}
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) { // so is the guest
		return nil
	}
	return err
}

// ofDisk is ofGuest for what concerns one disk, while images stay where they are. Nobody else does: two makers with
// different bases would leave a disk over the one and a link to the other.
func ofDisk[T any](s *Store, doing, uid, name string, do func(dir string) (T, error)) (T, error) {
	return ofGuest(s, uid, shared, fmt.Sprintf("%s disk %s of", doing, name), func(dir string) (v T, err error) {
		if !validName.MatchString(name) {
			return v, fmt.Errorf("%q is not a valid disk name", name)
		}
		held, err := lockedFile(dir, os.O_RDONLY, unix.LOCK_EX)
		if err != nil {
			return v, err
		}
		defer held.Close()
		return do(dir)
	})
}

// withDisk is ofDisk for what has no result.
func (s *Store) withDisk(doing, uid, name string, do func(dir string) error) error {
	_, err := ofDisk(s, doing, uid, name, func(dir string) (struct{}, error) { return struct{}{}, do(dir) })
	return err
}

// sweepLinks removes the links, which keep images, of disks whose making or removal was cut off.
func (s *Store) sweepLinks() error {
	links, err := filepath.Glob(filepath.Join(s.vms, "*", "*"+baseSuffix))
	if err != nil {
		return err
	}
	for _, link := range links {
		disk := strings.TrimSuffix(link, baseSuffix)
		if strings.Contains(filepath.Base(disk), ".") { // a kernel's, or a medium's
			continue
		}
		there, err := exists(disk+overlaySuffix, disk+recordSuffix)
		if err == nil && !there {
			err = os.RemoveAll(link)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
