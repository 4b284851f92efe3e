package store

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

const (
	refsFile   = "refs.json"
	accessFile = "access.json"
	saltFile   = "salt"
	saltSize   = 32
	// maxProofs bounds access.json; the oldest is forgotten first, which costs one question to the registry.
	maxProofs = 256
)

// Remember records what a reference meant when it was last resolved here.
func (s *Store) Remember(reference, digest string) error {
	path := filepath.Join(s.images, refsFile)
	return classify("remembering "+reference, s.exclusively(func() error {
		refs := map[string]string{}
		if err := readJSON(path, &refs); err != nil {
			return err
		}
		if refs[reference] == digest {
			return nil
		}
		// References to images that are gone are of no use.
		for have, at := range refs {
			key, err := Content{Digest: at}.key()
			if found, _ := filepath.Glob(filepath.Join(s.images, key+"*")); err != nil || len(found) == 0 {
				delete(refs, have)
			}
		}
		refs[reference] = digest
		return writeJSON(path, 0o600, refs)
	}))
}

// Recall returns what a reference meant when it was last resolved here, "" if it was not.
func (s *Store) Recall(reference string) (string, error) {
	refs := map[string]string{}
	err := readJSON(filepath.Join(s.images, refsFile), &refs)
	return refs[reference], err
}

// Allow records that the registry gave this content to whoever holds the credential of a proof.
func (s *Store) Allow(c Content, proof string) error {
	dir, err := s.imageDir(c)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, accessFile)
	return classify("recording the access to "+c.Digest, s.exclusively(func() error {
		hashed, err := s.hash(proof)
		if err != nil {
			return err
		}
		var have []string
		if err := readJSON(path, &have); err != nil {
			return err
		}
		if slices.Contains(have, hashed) {
			return nil
		}
		have = append(have, hashed)
		return writeJSON(path, 0o600, have[max(0, len(have)-maxProofs):])
	}))
}

// Allowed tells whether one of the proofs was recorded: only then may a guest have the content without the registry's
// consent, or it would get a private image because another guest on the node has it.
func (s *Store) Allowed(c Content, proofs []string) (bool, error) {
	dir, err := s.imageDir(c)
	if err != nil {
		return false, err
	}
	var have []string
	if err := readJSON(filepath.Join(dir, accessFile), &have); err != nil || len(have) == 0 {
		return false, err
	}
	for _, proof := range proofs {
		hashed, err := s.hash(proof)
		if err != nil {
			return false, err
		}
		if slices.Contains(have, hashed) {
			return true, nil
		}
	}
	return false, nil
}

// hash salts a proof, so that the files of one node tell nothing about another's.
func (s *Store) hash(proof string) (string, error) {
	path := filepath.Join(s.images, saltFile)
	salt, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		fresh := make([]byte, saltSize)
		_, _ = rand.Read(fresh) // it never fails
		err = publish(path, 0o600, 0, func(f *os.File) error { _, err := f.Write(fresh); return err })
		if err == nil {
			salt, err = os.ReadFile(path)
		}
	}
	if err != nil {
		return "", err
	}
	if len(salt) != saltSize {
		return "", fmt.Errorf("%s is spoilt: remove it", path)
	}
	mac := hmac.New(sha256.New, salt)
	mac.Write([]byte(proof))
	return hex.EncodeToString(mac.Sum(nil)), nil
}
