package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// toolsFile is the name by which a guest's directory has the disk with the guest program. No disk of a spec is named so.
const toolsFile = "tools.iso"

// Tools is a version of the disk with the guest program.
type Tools struct {
	// Digest is the SHA-256 of its bytes, in hexadecimal digits.
	Digest string
	// Image makes the bytes. It is called once on a node, as a rule.
	Image func() ([]byte, error)
}

// LinkTools gives a guest the disk with the guest program, and returns its path, which is the same at each start. The node has one file for each version of it, named by its digest, of which the guests have hard
// links: so they share its pages in memory, and one that the store has let go is gone with the last guest that has it.
// Errors: StoreFull; fs.ErrNotExist if the guest's directory is missing.
func (s *Store) LinkTools(uid string, t Tools) (path string, err error) {
	dir, err := s.vmDir(uid)
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, toolsFile)
	return path, classify("giving the guest program to guest "+uid, s.withExclusiveLock(func() error {
		file, err := s.publishTools(t)
		if err != nil {
			return err
		}
		if same, err := sameFile(file, path); same || err != nil {
			return err
		}
		temporary := filepath.Join(dir, newPrefix+toolsFile)
		if err := os.Remove(temporary); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Link(file, temporary); err != nil {
			return err
		}
		return os.Rename(temporary, path)
	}))
}

// publishTools makes the node's file of the disk, unless it is there, and lets those of other versions go.
func (s *Store) publishTools(t Tools) (file string, err error) {
	name := t.Digest + ".iso"
	file = filepath.Join(s.tools, name)
	if has, err := exists(file); has || err != nil {
		return file, err
	}
	image, err := t.Image()
	if err != nil {
		return "", err
	}
	if sum := sha256.Sum256(image); hex.EncodeToString(sum[:]) != t.Digest {
		return "", fmt.Errorf("the guest program's disk was to have the digest %s, and has %x", t.Digest, sum)
	}
	// Whoever QEMU runs as reads it, and nobody writes it.
	if err := publish(file, 0o444, 0, func(f *os.File) error { _, err := f.Write(image); return err }); err != nil {
		return "", err
	}
	others, err := os.ReadDir(s.tools)
	if err != nil {
		return "", err
	}
	for _, other := range others {
		if other.Name() != name {
			err = errors.Join(err, os.Remove(filepath.Join(s.tools, other.Name())))
		}
	}
	return file, err
}

// sameFile tells whether two names are one file's. A second one that is absent is none.
func sameFile(a, b string) (bool, error) {
	var one, other unix.Stat_t
	if err := unix.Lstat(a, &one); err != nil {
		return false, &os.PathError{Op: "stat", Path: a, Err: err}
	}
	err := unix.Lstat(b, &other)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "stat", Path: b, Err: err}
	}
	return one.Dev == other.Dev && one.Ino == other.Ino, nil
}
