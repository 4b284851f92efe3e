package store

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// idFile holds the store's ID, so that an empty directory is not taken for a store whose file system is to be mounted
// there, nor another store for this one.
const idFile = "id"

// maxID bounds what is read of it, in bytes.
const maxID = 64

// ErrUnidentified means that nobody has said yet which store the node's is.
var ErrUnidentified = errors.New("which store is this node's has not been read yet")

// Identify proves that the store is the one with this ID. If want is "", as on a node that has had none, it takes what is
// there, and gives it an ID if it has none. If it is not the one, Has fails from now on, so that no disk is made, and none
// taken for removed, until Identify succeeds.
func (s *Store) Identify(want string) (id string, err error) {
	if want == "" {
		s.Distrust(nil)
		if err := publish(filepath.Join(s.root, idFile), 0o600, 0, []byte(rand.Text()+"\n")); err != nil {
			return "", classify("giving the store an ID", err)
		}
		return s.readID()
	}
	id, err = s.readID()
	if err == nil && id != want {
		err = fault.NewTransient(v1alpha1.ReasonStoreFailed, fmt.Errorf(
			"the store in %s has the ID %q, want %q as in status.storeID of the node's VirtualMachineHost: mount the file system that has that store. If it is gone for good, delete the VirtualMachineHost: the node then takes the store that is there",
			s.root, id, want))
	}
	s.Distrust(err)
	return id, err
}

// readID is the store's ID, "" if it has none.
func (s *Store) readID() (string, error) {
	text, err := os.ReadFile(filepath.Join(s.root, idFile))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", nil
	case err == nil && len(text) == 0:
		err = io.ErrUnexpectedEOF
	}
	return strings.TrimSpace(string(text[:min(len(text), maxID)])), classify("reading the ID of the store", err)
}

// Distrust has Has fail with this error; nil ends that.
func (s *Store) Distrust(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.distrust != nil && err == nil && s.Trusted != nil {
		s.Trusted()
	}
	s.distrust = err
}

// Distrusted is why Has fails, nil if it does not.
func (s *Store) Distrusted() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.distrust
}
