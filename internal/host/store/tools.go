package store

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// LinkTools gives a guest the disk with the guest program, and returns its path, which is the same at each start. The node
// has one file for each version of it, named by its digest, of which the guests have hard links: so they share its pages in
// memory, and one that the store has let go is gone with the last guest that has it.
// Errors: StoreFull; fs.ErrNotExist if the guest's directory is missing.
func (s *Store) LinkTools(uid string, t Tools) (path string, err error) {
	return ofGuest(s, uid, exclusive, "giving the guest program to", func(dir string) (string, error) {
		path := filepath.Join(dir, toolsFile)
		file, err := s.publishTools(t)
		if err != nil {
			return "", err
		}
		latest, err := os.Lstat(file)
		if err != nil {
			return "", err
		}
		if has, err := os.Lstat(path); err == nil && os.SameFile(has, latest) {
			return path, nil
		}
		return path, replace(path, func(temporary string) error { return os.Link(file, temporary) })
	})
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
	if err := publish(file, 0o444, 0, image); err != nil {
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
