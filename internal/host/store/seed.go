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
	if path, err = s.seedPath(uid); err != nil {
		return "", err
	}
	if _, err := os.Lstat(path); err == nil {
		return path, nil
	}
	if err := inMemory(s.seeds); err != nil {
		return "", err
	}
	return path, classify("making the seed of guest "+uid,
		publish(path, 0o400, user, func(f *os.File) error { return f.Truncate(size) }))
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

// HasSeed tells whether a guest's seed is there.
func (s *Store) HasSeed(uid string) (has bool, err error) {
	path, err := s.seedPath(uid)
	if err == nil {
		has, err = exists(path)
	}
	return has, classify("looking for the seed of guest "+uid, err)
}

// WriteSeed fills the seed in place. b must have its size.
func (s *Store) WriteSeed(uid string, b []byte) error {
	path, err := s.seedPath(uid)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return classify("writing the seed of guest "+uid, err)
	}
	st, err := f.Stat()
	if err == nil && st.Size() != int64(len(b)) {
		err = fmt.Errorf("%d bytes for a file of %d", len(b), st.Size())
	}
	if err == nil {
		_, err = f.WriteAt(b, 0)
	}
	return classify("writing the seed of guest "+uid, errors.Join(err, f.Close()))
}

// RemoveSeed overwrites the seed, as QEMU may still hold it, and removes it. One that is absent is no error.
func (s *Store) RemoveSeed(uid string) error {
	path, err := s.seedPath(uid)
	if err != nil {
		return err
	}
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = errors.Join(s.WriteSeed(uid, make([]byte, st.Size())), os.Remove(path))
	}
	return classify("removing the seed of guest "+uid, err)
}

func (s *Store) seedPath(uid string) (string, error) {
	_, err := s.vmDir(uid)
	return filepath.Join(s.seeds, uid+".iso"), err
}
