package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// CreateSeed makes the file of a guest's seed: size bytes, all zero, which only user may read. QEMU may open it
// before WriteSeed. One that is there is left as it is.
func (s *Store) CreateSeed(uid string, size int64, user int) (path string, err error) {
	return ofGuest(s, uid, unlocked, "making the seed of", func(string) (string, error) {
		path := s.seedPath(uid)
		if _, err := os.Lstat(path); err == nil {
			return path, nil
		}
		if err := inMemory(s.seeds); err != nil {
			return "", err
		}
		return path, publish(path, 0o400, user, make([]byte, size))
	})
}

// WriteIgnition writes the configuration for a guest's Ignition, which only user may read, in place of one that is there. QEMU reads it when it starts.
func (s *Store) WriteIgnition(uid string, config []byte, user int) (path string, err error) {
	return ofGuest(s, uid, unlocked, "writing the Ignition configuration of", func(string) (string, error) {
		path := s.ignitionPath(uid)
		if err := inMemory(s.seeds); err != nil {
			return "", err
		}
		if err := os.RemoveAll(path); err != nil {
			return "", err
		}
		return path, publish(path, 0o400, user, config)
	})
}

// inMemory refuses a directory whose files stay on a disk: seeds may hold secrets.
func inMemory(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return classify("finding the file system of the seeds", &os.PathError{Op: "statfs", Path: dir, Err: err})
	}
	if fs.Type != unix.TMPFS_MAGIC {
		return fault.NewTransient(v1alpha1.ReasonStoreFailed, fmt.Errorf(
			"%s, for first-boot data and its secrets, is not on a tmpfs but on a file system of type %#x: mount a tmpfs there, or set agent.runDir to a directory on one", dir, fs.Type))
	}
	return nil
}

// HasSeed tells whether a guest's seed is there, or its configuration for Ignition.
func (s *Store) HasSeed(uid string) (bool, error) {
	return ofGuest(s, uid, unlocked, "looking for the seed of", func(string) (bool, error) {
		return exists(s.seedPath(uid), s.ignitionPath(uid))
	})
}

// WriteSeed fills the seed in place. b must have its size.
func (s *Store) WriteSeed(uid string, b []byte) error {
	return s.inGuest(uid, unlocked, "writing the seed of", func(string) error {
		f, err := os.OpenFile(s.seedPath(uid), os.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return err
		}
		st, err := f.Stat()
		if err == nil && st.Size() != int64(len(b)) {
			err = fmt.Errorf("%d bytes for a file of %d", len(b), st.Size())
		}
		if err == nil {
			_, err = f.WriteAt(b, 0)
		}
		return errors.Join(err, f.Close())
	})
}

// RemoveSeed overwrites the seed, as QEMU may still hold it, and removes it with the configuration for Ignition. One that is absent is no error.
func (s *Store) RemoveSeed(uid string) error {
	return s.inGuest(uid, unlocked, "removing the seed of", func(string) error {
		if err := os.RemoveAll(s.ignitionPath(uid)); err != nil {
			return err
		}
		st, err := os.Lstat(s.seedPath(uid))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		return errors.Join(s.WriteSeed(uid, make([]byte, st.Size())), os.Remove(s.seedPath(uid)))
	})
}

func (s *Store) ignitionPath(uid string) string { return filepath.Join(s.seeds, uid+".ign") }

func (s *Store) seedPath(uid string) string { return filepath.Join(s.seeds, uid+".iso") }
