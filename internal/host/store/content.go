package store

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
)

// Content is what is kept of an image: its disk, or the kernel at a path in it. Equal contents are the same files.
type Content struct {
	// Digest is the image manifest's, as sha256:….
	Digest string `json:"digest"`
	// Kernel and Initrd are paths in the image; both "" if the disk is meant.
	Kernel string `json:"kernel,omitempty"`
	Initrd string `json:"initrd,omitempty"`
}

// The names that a Fetch gives its files.
const (
	Disk   = "disk"
	Kernel = "kernel"
	Initrd = "initrd"
)

var (
	validDigest = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	validUID    = regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`)
	validName   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$`)
)

// key names the content's directory.
func (c Content) key() (string, error) {
	if !validDigest.MatchString(c.Digest) {
		return "", fmt.Errorf("%q is not a sha256 digest", c.Digest)
	}
	key := strings.TrimPrefix(c.Digest, "sha256:")
	if c.Kernel != "" || c.Initrd != "" {
		paths := sha256.Sum256([]byte(c.Kernel + "\x00" + c.Initrd))
		key += "-" + hex.EncodeToString(paths[:8])
	}
	return key, nil
}

// wants are the names of the files that make the content whole.
func (c Content) fileNames() []string {
	switch {
	case c.Kernel == "" && c.Initrd == "":
		return []string{Disk}
	case c.Initrd == "":
		return []string{Kernel}
	default:
		return []string{Kernel, Initrd}
	}
}

func (s *Store) imageDir(c Content) (string, error) {
	key, err := c.key()
	return filepath.Join(s.images, key), err
}

func (s *Store) vmDir(uid string) (string, error) {
	if !validUID.MatchString(uid) {
		return "", fmt.Errorf("%q is not the UID of a VirtualMachine", uid)
	}
	return filepath.Join(s.vms, uid), nil
}
