package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
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

// ofGuest reads or changes something in a guest's directory, with the store locked so.
func ofGuest[T any](s *Store, uid string, how int, doing string, do func(dir string) (T, error)) (v T, err error) {
	if !validUID.MatchString(uid) {
		return v, fmt.Errorf("%q is not the UID of a VirtualMachine", uid)
	}
	err = s.locked(how, func() error {
		v, err = do(filepath.Join(s.vms, uid))
		return err
	})
	return v, classify(doing+" guest "+uid, err)
}

// inGuest is ofGuest for what has no result.
func (s *Store) inGuest(uid string, how int, doing string, do func(dir string) error) error {
	_, err := ofGuest(s, uid, how, doing, func(dir string) (struct{}, error) { return struct{}{}, do(dir) })
	return err
}

// EnsureGuest makes a guest's directory and assigns the user that its QEMU runs as, or returns the user that it has.
func (s *Store) EnsureGuest(id Identity) (user int, err error) {
	const doing = "assigning a user to"
	if user, err = ofGuest(s, id.UID, unlocked, doing, userOf); err == nil {
		return user, nil
	}
	return ofGuest(s, id.UID, exclusive, doing, func(dir string) (int, error) {
		if user, err := userOf(dir); !errors.Is(err, fs.ErrNotExist) {
			return user, err
		}
		user, err := s.freeUser(id.UID)
		if err != nil {
			return 0, err
		}
		return user, replace(dir, func(temporary string) error {
			if err := os.Mkdir(temporary, dirMode); err != nil {
				return err
			}
			return errors.Join(
				os.Lchown(temporary, 0, user),
				os.Chmod(temporary, dirMode),
				writeJSON(filepath.Join(temporary, recordFile), 0o600, record{Version: recordVersion, Identity: id}))
		})
	})
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
	info, err := os.Lstat(dir)
	if err != nil {
		return 0, err
	}
	user := int(info.Sys().(*syscall.Stat_t).Gid)
	if user < FirstUser || user >= FirstUser+Users {
		return 0, fmt.Errorf("%s has group %d, which is not between %d and %d: restore it", dir, user, FirstUser, FirstUser+Users-1)
	}
	return user, nil
}

// List returns the guests that have a directory.
func (s *Store) List() ([]Guest, error) {
	uids, err := directories(s.vms)
	if err != nil {
		return nil, classify("listing the guests' directories", err)
	}
	var guests []Guest
	for _, uid := range uids {
		dir := filepath.Join(s.vms, uid)
		user, err := userOf(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		g := Guest{User: user}
		_ = readJSON(filepath.Join(dir, recordFile), &g.Identity)
		g.UID = uid
		guests = append(guests, g)
	}
	return guests, nil
}

// Has tells whether a guest has a directory. It fails while this may not be the node's store; see Identify.
func (s *Store) Has(uid string) (bool, error) {
	if err := s.Distrusted(); err != nil {
		return false, err
	}
	return ofGuest(s, uid, unlocked, "looking for", func(dir string) (bool, error) { return exists(dir) })
}

// Remove removes a guest's seed, disks and directory. The caller has proven that no QEMU has them open. A guest that
// is absent is no error.
func (s *Store) Remove(uid string) error {
	if err := s.RemoveSeed(uid); err != nil {
		return err
	}
	return s.inGuest(uid, unlocked, "removing the disks of", func(dir string) error {
		return s.remove(dir, func() error { return nil })
	})
}

// strayFile tells by its time since when a guest is a stray.
const strayFile = "stray"

// MarkStray takes note that nobody knows a guest's VirtualMachine, and returns since when that is so.
func (s *Store) MarkStray(uid string) (since time.Time, err error) {
	return ofGuest(s, uid, unlocked, "marking as stray the disks of", func(dir string) (since time.Time, err error) {
		f, err := os.OpenFile(filepath.Join(dir, strayFile), os.O_RDONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return since, err
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			return since, err
		}
		return info.ModTime(), nil
	})
}

// UnmarkStray takes note that somebody does. That it was no stray is no error.
func (s *Store) UnmarkStray(uid string) error {
	return s.inGuest(uid, unlocked, "unmarking as stray the disks of", func(dir string) error {
		return os.RemoveAll(filepath.Join(dir, strayFile))
	})
}

// Allocated is the space that a guest's directory takes beyond its images, in bytes.
func (s *Store) Allocated(uid string) (int64, error) {
	return ofGuest(s, uid, unlocked, "measuring the disks of", func(dir string) (all int64, err error) {
		entries, err := os.ReadDir(dir)
		for _, e := range entries {
			info, err := e.Info()
			if err != nil {
				return 0, err
			}
			all += allocated(info)
		}
		return all, err
	})
}

const recordFile = "vm.json"

// recordVersion is the version of the records that are written here. Whoever adds a field keeps the fields of all versions
// readable; a higher number is for a field whose absence has a meaning of its own. Version 1, which administrators may have
// written as they were told, says nothing of the seed. Version 0, which has no number, is not known any more.
const recordVersion = 2

// record is what is kept of a VM on its node. A version that is newer than recordVersion may hold more.
type record struct {
	Version int `json:"recordVersion"`
	Identity
	Hardware *Hardware `json:"hardware,omitempty"`
	// Seed: the VM first started with cloud-init data. nil is that it did not start here yet, or, in version 1, that nobody
	// knows.
	Seed *bool `json:"seed,omitempty"`
}

// Hardware is what a VM keeps for life.
type Hardware struct {
	// Layout is the number of the layout of its devices.
	Layout int `json:"layout"`
	// Machine is QEMU's machine type.
	Machine string `json:"machine"`
}

// Hardware returns a guest's hardware. A guest that has none yet, because it never started on this node, gets first,
// for ever. The guest's directory must be there.
func (s *Store) Hardware(uid string, first Hardware) (Hardware, error) {
	return ofGuest(s, uid, exclusive, "reading the hardware of", func(dir string) (Hardware, error) {
		return readHardware(filepath.Join(dir, recordFile), first)
	})
}

// readHardware reads the hardware of a record, and adds it if it is missing.
func readHardware(path string, first Hardware) (Hardware, error) {
	r, fields, err := readRecord(path)
	switch {
	case err != nil:
		return Hardware{}, err
	case r.Hardware != nil:
		return *r.Hardware, nil
	}
	return first, add(path, fields, "hardware", first)
}

// RanWithoutSeed tells whether a guest had no cloud-init data when it first started on this node, so that its cloud-init, if
// it got some now, would take the guest for a new machine. Of whom nobody knows, it counts as such; one that has no directory
// has not started.
func (s *Store) RanWithoutSeed(uid string) (bool, error) {
	return ofGuest(s, uid, unlocked, "reading the first start of", func(dir string) (bool, error) {
		if has, err := exists(dir); !has || err != nil {
			return false, err
		}
		r, _, err := readRecord(filepath.Join(dir, recordFile))
		return r.ranWithoutSeed(), err
	})
}

func (r record) ranWithoutSeed() bool {
	if r.Seed != nil {
		return !*r.Seed
	}
	return r.Version == 1 && r.Hardware != nil
}

// RecordSeed records whether a guest starts with cloud-init data, if this is its first start on this node. It comes before
// its hardware is recorded. The guest's directory must be there.
func (s *Store) RecordSeed(uid string, seed bool) error {
	return s.inGuest(uid, exclusive, "recording the first start of", func(dir string) error {
		path := filepath.Join(dir, recordFile)
		r, fields, err := readRecord(path)
		if err != nil || r.Seed != nil || r.ranWithoutSeed() {
			return err
		}
		return add(path, fields, "seed", seed)
	})
}

// readRecord reads a record, and its fields as they are: a newer version may have written more.
func readRecord(path string) (r record, fields map[string]json.RawMessage, err error) {
	if err = readJSON(path, &fields); err == nil {
		err = readJSON(path, &r)
	}
	switch {
	case err != nil:
	case len(fields) == 0:
		err = fmt.Errorf("%s is missing or empty", path)
	case r.Version < 1:
		err = fmt.Errorf("%s has no version that is known", path)
	}
	if err != nil {
		err = fault.NewUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf(
			`%w: restore it, or write {"recordVersion": %d} into it to give the VM the hardware of a new one`, err, recordVersion))
	}
	return r, fields, err
}

// add adds a field to a record.
func add(path string, fields map[string]json.RawMessage, name string, value any) error {
	fields[name], _ = json.Marshal(value) // strings and numbers never fail
	return writeJSON(path, 0o600, fields)
}
