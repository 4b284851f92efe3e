package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// strayFile tells by its time since when a guest is a stray. Older versions do not look at it.
const strayFile = "stray"

// MarkStray takes note that nobody knows a guest's VirtualMachine, and returns since when that is so.
func (s *Store) MarkStray(uid string) (since time.Time, err error) {
	dir, err := s.vmDir(uid)
	if err != nil {
		return since, err
	}
	f, err := os.OpenFile(filepath.Join(dir, strayFile), os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return since, classify("marking the disks of guest "+uid+" as stray", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return since, classify("reading since when the disks of guest "+uid+" are stray", err)
	}
	return info.ModTime(), nil
}

// UnmarkStray takes note that somebody does. That it was no stray is no error.
func (s *Store) UnmarkStray(uid string) error {
	dir, err := s.vmDir(uid)
	if err != nil {
		return err
	}
	if err = os.Remove(filepath.Join(dir, strayFile)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return classify("taking guest "+uid+" for no stray any more", err)
}

// Allocated is the space that a guest's directory takes beyond its images, in bytes.
func (s *Store) Allocated(uid string) (int64, error) {
	dir, err := s.vmDir(uid)
	if err != nil {
		return 0, err
	}
	entries, err := os.ReadDir(dir)
	var all int64
	for _, e := range entries {
		n, err := allocated(filepath.Join(dir, e.Name()))
		if err != nil {
			return 0, classify("measuring the disks of guest "+uid, err)
		}
		all += n
	}
	return all, classify("measuring the disks of guest "+uid, err)
}
