package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Every guest's QEMU runs as a user of its own, from FirstUser on: past the users that systemd gives out (its
// containers end at 0x6fffffff), and far from those of distributions and of kubelet.
const (
	FirstUser = 0x70000000
	Users     = 65536
)

// Identity says whose a directory is.
type Identity struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	UID       string `json:"uid"`
}

// Guest is a guest that has a directory on this node. Its names are empty if its record cannot be read.
type Guest struct {
	Identity
	// User is the one its QEMU runs as.
	User int
}

// EnsureGuest makes a guest's directory and assigns the user that its QEMU runs as, or returns the user that it has.
func (s *Store) EnsureGuest(id Identity) (user int, err error) {
	dir, err := s.vmDir(id.UID)
	if err != nil {
		return 0, err
	}
	if user, err := userOf(dir); err == nil {
		return user, nil
	}
	err = s.withExclusiveLock(func() error {
		if user, err = userOf(dir); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if user, err = s.freeUser(id.UID); err != nil {
			return err
		}
		temporary := filepath.Join(s.vms, newPrefix+id.UID)
		if err := errors.Join(os.RemoveAll(temporary), os.Mkdir(temporary, dirMode)); err != nil {
			return err
		}
		err := errors.Join(
			os.Lchown(temporary, 0, user),
			os.Chmod(temporary, dirMode),
			writeJSON(filepath.Join(temporary, recordFile), 0o600, record{Version: recordVersion, Identity: id}))
		if err == nil {
			err = os.Rename(temporary, dir)
		}
		if err != nil {
			_ = os.RemoveAll(temporary)
			return err
		}
		return syncDir(s.vms)
	})
	return user, classify("assigning a user to guest "+id.UID, err)
}

// freeUser looks from a place that depends on the guest, so that users are not soon reused.
func (s *Store) freeUser(uid string) (int, error) {
	taken := map[int]bool{}
	guests, err := s.List()
	if err != nil {
		return 0, err
	}
	for _, g := range guests {
		taken[g.User] = true
	}
	sum := sha256.Sum256([]byte(uid))
	first := int(binary.BigEndian.Uint16(sum[:]))
	for i := range Users {
		if user := FirstUser + (first+i)%Users; !taken[user] {
			return user, nil
		}
	}
	return 0, fmt.Errorf("all %d users are taken", Users)
}

// userOf reads the user of a guest's directory.
func userOf(dir string) (int, error) {
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if st.Gid < FirstUser || st.Gid >= FirstUser+Users {
		return 0, fmt.Errorf("%s has group %d, which is not between %d and %d: restore it", dir, st.Gid, FirstUser, FirstUser+Users-1)
	}
	return int(st.Gid), nil
}

// List returns the guests that have a directory.
func (s *Store) List() ([]Guest, error) {
	entries, err := os.ReadDir(s.vms)
	if err != nil {
		return nil, classify("listing the guests' directories", err)
	}
	var guests []Guest
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") || !e.IsDir() {
			continue
		}
		dir := filepath.Join(s.vms, e.Name())
		user, err := userOf(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		g := Guest{User: user}
		_ = readJSON(filepath.Join(dir, recordFile), &g.Identity)
		g.UID = e.Name()
		guests = append(guests, g)
	}
	return guests, nil
}

// Has tells whether a guest has a directory. It fails while this may not be the node's store; see Identify.
func (s *Store) Has(uid string) (has bool, err error) {
	if err := s.Distrusted(); err != nil {
		return false, err
	}
	dir, err := s.vmDir(uid)
	if err == nil {
		has, err = exists(dir)
	}
	return has, classify("looking for guest "+uid, err)
}

// Remove removes a guest's seed, disks and directory. The caller has proven that no QEMU has them open. A guest that
// is absent is no error.
func (s *Store) Remove(uid string) error {
	dir, err := s.vmDir(uid)
	if err != nil {
		return err
	}
	if err := s.RemoveSeed(uid); err != nil {
		return err
	}
	return classify("removing the disks of guest "+uid, s.remove(dir, func() error { return nil }))
}
