package store

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

const (
	refsFile   = "refs.json"
	accessFile = "access.json"
	saltFile   = "salt"
	saltSize   = 32
	// maxFingerprints bounds access.json; the oldest is forgotten first, which costs one question to the registry.
	maxFingerprints = 256
	// maxTags bounds refs.json, and maxTagsOfDigest what one image takes of it. Which names are forgotten does not
	// matter: each costs one question to the registry.
	maxTags         = 4096
	maxTagsOfDigest = 64
)

// SetTag records the digest that a reference was last resolved to on this node.
func (s *Store) SetTag(reference, digest string) error {
	path := filepath.Join(s.images, refsFile)
	return classify("recording the digest of "+reference, s.locked(exclusive, func() error {
		refs := map[string]string{}
		if err := readJSON(path, &refs); err != nil {
			return err
		}
		if refs[reference] == digest {
			return nil
		}
		keys, err := directories(s.images)
		if err != nil {
			return err
		}
		kept := map[string]bool{}
		for _, key := range keys {
			kept[digestOf(key)] = true
		}
		delete(refs, reference)
		same := 0
		maps.DeleteFunc(refs, func(_, at string) bool {
			if at == digest {
				same++
			}
			return !kept[at] || at == digest && same >= maxTagsOfDigest // of an image that is gone a name is of no use
		})
		for have := range refs {
			if len(refs) < maxTags {
				break
			}
			delete(refs, have)
		}
		refs[reference] = digest
		return writeJSON(path, 0o600, refs)
	}))
}

// ResolveTag returns the digest that a reference was last resolved to on this node, "" if it was not.
func (s *Store) ResolveTag(reference string) (string, error) {
	refs := map[string]string{}
	err := readJSON(filepath.Join(s.images, refsFile), &refs)
	return refs[reference], err
}

// GrantAccess records that the registry gave this content to whoever holds the credential with this fingerprint.
func (s *Store) GrantAccess(c Content, fingerprint string) error {
	dir, err := s.imageDir(c)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, accessFile)
	return classify("recording the access to "+c.Digest, s.locked(exclusive, func() error {
		hashed, err := s.hash(fingerprint)
		if err != nil {
			return err
		}
		var have []string
		if err := readJSON(path, &have); err != nil || slices.Contains(have, hashed[0]) {
			return err
		}
		have = append(have, hashed[0])
		return writeJSON(path, 0o600, have[max(0, len(have)-maxFingerprints):])
	}))
}

// HasAccess tells whether one of the fingerprints was recorded: only then may a guest have the content without the registry's
// consent, or it would get a private image because another guest on the node has it.
func (s *Store) HasAccess(c Content, fingerprints []string) (bool, error) {
	dir, err := s.imageDir(c)
	if err != nil {
		return false, err
	}
	var have []string
	if err := readJSON(filepath.Join(dir, accessFile), &have); err != nil || len(have) == 0 {
		return false, err
	}
	hashed, err := s.hash(fingerprints...)
	return slices.ContainsFunc(hashed, func(h string) bool { return slices.Contains(have, h) }), err
}

// hash salts fingerprints, so that the files of one node tell nothing about another's.
func (s *Store) hash(fingerprints ...string) (hashed []string, err error) {
	path := filepath.Join(s.images, saltFile)
	salt, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh := make([]byte, saltSize)
		_, _ = rand.Read(fresh) // it never fails
		if err = publish(path, 0o600, 0, fresh); err == nil {
			salt, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return nil, err
	}
	if len(salt) != saltSize {
		return nil, fmt.Errorf("%s does not have %d bytes: remove it, and access to images is checked with registries again", path, saltSize)
	}
	for _, fingerprint := range fingerprints {
		mac := hmac.New(sha256.New, salt)
		mac.Write([]byte(fingerprint))
		hashed = append(hashed, hex.EncodeToString(mac.Sum(nil)))
	}
	return hashed, nil
}
