package volume

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-dev/berth/internal/fault"
)

const (
	// recordVersion is the version of the records that are written here. The next version reads this one too: an agent
	// that was upgraded finds the volumes of guests that run.
	recordVersion = 1
	recordSuffix  = ".json"
	newSuffix     = ".new" // of what appears as a whole
)

// record is what is kept of a volume beside it. A version that is newer may hold more.
type record struct {
	Version int `json:"recordVersion"`
	Volume
	identity
	Made *Made `json:"made,omitempty"`
}

// identity is what two volumes have in common only if they are one. On a host it means that volume as long as a berth
// has it.
type identity struct {
	// Major and Minor are a device's numbers, or those of the device that stat(2) tells of a file system.
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	// Inode is that of a file system's root: a file system may be several volumes, each with a directory of it.
	Inode uint64 `json:"inode,omitempty"`
}

func newRecord(vol Volume, id identity) record {
	return record{Version: recordVersion, Volume: vol, identity: id}
}

// same tells whether what is attached by one record is what the other wants.
func (r record) same(other record) bool {
	return r.Claim == other.Claim && r.Block == other.Block && r.ReadOnly == other.ReadOnly && r.identity == other.identity
}

// conflicts tells whether two volumes are one that they must not share. A file system and the device that it is on are
// never shared.
func (r record) conflicts(other record) bool {
	switch {
	case r.Major != other.Major || r.Minor != other.Minor:
		return false
	case r.Block != other.Block:
		return true
	case r.Inode != other.Inode:
		return false
	}
	return !(r.Shared && other.Shared) && !(r.ReadOnly && other.ReadOnly)
}

func (r record) attached(v *Volumes, uid string) Attached {
	a := Attached{Volume: r.Volume, File: filepath.Join(v.mountPoint(uid, r.Disk), diskFile)}
	if r.Block {
		a.File = v.node(uid, r.Disk)
	}
	if r.Made != nil {
		a.Made, a.Size, a.Target, a.Capacity, a.Seed = true, r.Made.Size, r.Made.Target, r.Made.Capacity, r.Made.Seed
	}
	return a
}

func (v *Volumes) recordFile(uid, disk string) string {
	return filepath.Join(v.dir, uid, disk+recordSuffix)
}

// writeRecord replaces a record, whole or not at all. It needs no fsync: a boot of the host takes all of it away.
func (v *Volumes) writeRecord(uid string, r record) error {
	b, _ := json.Marshal(r) // strings and numbers never fail
	path := v.recordFile(uid, r.Disk)
	if err := os.WriteFile(path+newSuffix, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(path+newSuffix, path)
}

func (v *Volumes) readRecord(uid, disk string) (r record, err error) {
	path := v.recordFile(uid, disk)
	b, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	return r, fault.Doing(json.Unmarshal(b, &r), "reading %s", path)
}

// records are those of one guest, by the name of the disk.
func (v *Volumes) records(uid string) (records []record, err error) {
	disks, err := v.disks(uid)
	for _, disk := range disks {
		switch r, err := v.readRecord(uid, disk); {
		case err == nil:
			records = append(records, r)
		case !errors.Is(err, fs.ErrNotExist): // of a disk that is half attached
			return nil, err
		}
	}
	return records, err
}
