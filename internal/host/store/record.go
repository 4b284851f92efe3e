package store

import (
	"encoding/json"
	"fmt"
	"path/filepath"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const recordFile = "vm.json"

// recordVersion is the version of the records that are written here. Version 0 has no number and no hardware.
// Whoever adds a field keeps the fields of all versions readable; a higher number is for a field whose absence has a
// meaning of its own.
const recordVersion = 1

// record is what is kept of a VM on its node. A version that is newer than recordVersion may hold more.
type record struct {
	Version int `json:"recordVersion"`
	Identity
	Hardware *Hardware `json:"hardware,omitempty"`
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
func (s *Store) Hardware(uid string, first Hardware) (h Hardware, err error) {
	dir, err := s.vmDir(uid)
	if err != nil {
		return Hardware{}, err
	}
	err = s.withExclusiveLock(func() error {
		h, err = readHardware(filepath.Join(dir, recordFile), first)
		return err
	})
	return h, classify("reading the hardware of guest "+uid, err)
}

// readHardware reads a record, and adds what is missing in it to what a newer version may have written.
func readHardware(path string, first Hardware) (Hardware, error) {
	var r record
	fields := map[string]json.RawMessage{}
	err := readJSON(path, &fields)
	if err == nil {
		err = readJSON(path, &r)
	}
	if err == nil && len(fields) == 0 {
		err = fmt.Errorf("%s is missing or empty", path)
	}
	if err != nil {
		return Hardware{}, fault.NewUser(v1alpha1.ReasonHardwareUnknown, fmt.Errorf(
			`%w: restore it, or write {"recordVersion": 1} into it to give the VM the hardware of a new one`, err))
	}
	switch {
	case r.Version == 0:
		return hardwareOfVersion0, nil
	case r.Hardware != nil:
		return *r.Hardware, nil
	}
	if fields["hardware"], err = json.Marshal(first); err != nil {
		return Hardware{}, err
	}
	return first, writeJSON(path, 0o600, fields)
}
