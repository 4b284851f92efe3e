package volume

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// Rig is a host for the contract of hosttest, which cannot be imported from inside.
type Rig struct {
	*rig
	claims int
}

func NewRig(t *testing.T) *Rig { return &Rig{rig: newRig(t)} }

func (r *Rig) Volumes() *Volumes { return r.volumes() }

func (r *Rig) Claim(t *testing.T, block bool) string {
	if block {
		path, _ := loop(t)
		return path
	}
	r.claims++
	return r.fileSystem("claim-" + strconv.Itoa(r.claims))
}

func (r *Rig) Berth(t *testing.T, claim string, block bool) (shim int, path string) {
	if !block {
		return r.berth(r.mounting(claim))
	}
	var s unix.Stat_t
	if err := unix.Stat(claim, &s); err != nil {
		t.Fatal(err)
	}
	return r.berth(nodeOf(s.Rdev))
}

// Use is by a QEMU that made the disk itself, as a worker would have.
func (r *Rig) Use(_ *testing.T, g Guest, file string) (stop func()) {
	r.in(r.ns, func() error { return os.Chown(filepath.Dir(file), g.User, g.Group) })
	_, stop = r.qemu(uint32(g.User), "exec 3>"+file)
	return stop
}
