package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// commitFile is the copy of a guest's disk that becomes an image. With a dot in it the name is no disk's.
const commitFile = "commit.part"

// CreateCommit makes the file that a disk of a guest is copied to: blank, of the disk's size, its user's. The copy and
// QEMU take up to needs bytes. It replaces what EndCommit could not free. Errors: StoreFull.
func (s *Store) CreateCommit(uid string, size, needs int64, user int) (path string, err error) {
	return ofGuest(s, uid, unlocked, "making room for a copy of a disk of", func(dir string) (string, error) {
		if err := s.checkRoom(needs); err != nil {
			return "", err
		}
		blank, err := diskformat.Overlay(diskformat.OverlayOptions{Size: size})
		if err != nil {
			return "", err
		}
		path := filepath.Join(dir, commitFile)
		if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		return path, publish(path, 0o600, user, blank)
	})
}

// EndCommit removes what CreateCommit has made, once free has freed it of all that uses it. Its space is free at once. That
// there is none is no error, and free is not called then.
func (s *Store) EndCommit(uid string, free func() error) error {
	return s.inGuest(uid, unlocked, "removing a copy of a disk of", func(dir string) error {
		path := filepath.Join(dir, commitFile)
		if err := os.Truncate(path, 0); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if err := free(); err != nil {
			return err
		}
		return os.Remove(path)
	})
}
