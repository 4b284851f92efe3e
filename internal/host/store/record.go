package store

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const recordFile = "vm.json"

// recordVersion is the version of the records that are written here. Version 0 has no number and no hardware, version 1
// says nothing of the seed.
// Whoever adds a field keeps the fields of all versions readable; a higher number is for a field whose absence has a
// meaning of its own.
const recordVersion = 2

// record is what is kept of a VM on its node. A version that is newer than recordVersion may hold more.
type record struct {
	Version int `json:"recordVersion"`
	Identity
	Hardware *Hardware `json:"hardware,omitempty"`
	// Seed: the VM first started with cloud-init data. nil is that it did not start here yet, or before version 2.
	Seed *bool `json:"seed,omitempty"`
}

// Hardware is what a VM keeps for life.
type Hardware struct {
	// Layout is the number of the layout of its devices.
	Layout int `json:"layout"`
	// Machine is QEMU's machine type.
	Machine string `json:"machine"`
}

// hardwareOfVersion0 is what VMs had before it was recorded.
var hardwareOfVersion0 = Hardware{Layout: 0, Machine: "q35"}

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
	case r.Version == 0:
		return hardwareOfVersion0, nil
	case r.Hardware != nil:
		return *r.Hardware, nil
	}
	return first, add(path, fields, "hardware", first)
}

// RanWithoutSeed tells whether a guest had no cloud-init data when it first started on this node, so that its cloud-init, if
// it got some now, would take the guest for a new machine. Of one that started before that was recorded nobody knows, and it
// counts as such; one that has no directory has not started.
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
	return r.Version == 0 || r.Version == 1 && r.Hardware != nil
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
	fields = map[string]json.RawMessage{}
	if err = readJSON(path, &fields); err == nil {
		err = readJSON(path, &r)
	}
	if err == nil && len(fields) == 0 {
		err = fmt.Errorf("%s is missing or empty", path)
	}
	if err != nil {
		err = fault.NewUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf(
			`%w: restore it, or write {"recordVersion": 1} into it to give the VM the hardware of a new one`, err))
	}
	return r, fields, err
}

// add adds a field to a record.
func add(path string, fields map[string]json.RawMessage, name string, value any) (err error) {
	if fields[name], err = json.Marshal(value); err != nil {
		return err
	}
	return writeJSON(path, 0o600, fields)
}
