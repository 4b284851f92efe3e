package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRecordOfVersion1 reads what agents of version 1 have written: their guests run on when the agent is upgraded.
func TestRecordOfVersion1(t *testing.T) {
	golden, err := os.ReadFile("testdata/record-1.json")
	if err != nil {
		t.Fatal(err)
	}
	v := New(t.TempDir(), nil)
	if err := os.Mkdir(v.guestDir(uidA), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(v.recordFile(uidA, "data"), golden, 0o600); err != nil {
		t.Fatal(err)
	}
	want := newRecord(Volume{Disk: "data", Path: "/disks/data", Claim: "5f9d1f0e-5a51-4c2c-a3f0-3a0c6a1d2b11", Shared: true}, identity{Major: 8, Minor: 17, Inode: 128})
	want.Made = &Made{Size: 1 << 30, Target: 3 << 29, Capacity: 2 << 30, Seed: "sha256:1"}
	got, err := v.readRecord(uidA, "data")
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(record{})); diff != "" || err != nil {
		t.Errorf("read (-want +got):\n%s%v", diff, err)
	}
	if err := v.writeRecord(uidA, got); err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(filepath.Join(v.guestDir(uidA), "data.json"))
	if string(written) != string(golden) || err != nil {
		t.Errorf("written is\n%swant\n%s%v", written, golden, err)
	}
}

func TestMountsOver(t *testing.T) {
	const (
		root    = "22 1 254:0 / / rw - ext4 /dev/vda rw\n"
		shared  = "22 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n"
		run     = "23 22 0:22 / /run rw,nosuid shared:5 master:1 - tmpfs tmpfs rw\n"
		private = "24 22 0:23 / /run rw,nosuid - tmpfs tmpfs rw\n"
		beside  = "25 22 0:24 / /runaway rw,nosuid shared:7 - tmpfs tmpfs rw\n"
		itself  = "26 23 0:25 / /run/berth/volumes rw,nosuid - tmpfs tmpfs rw\n"
	)
	for _, tt := range []struct {
		name, table, at string
		shared          bool
	}{
		{"a private root", root, "/", false},
		{"a shared root", shared, "/", true},
		{"a mount on the way", root + run + beside, "/run", true},
		{"a private mount above a shared one", shared + run + private, "/run", false},
		{"the directory itself", shared + run + itself, "/run", true},
		{"nothing", "", "", false},
	} {
		mounts, err := mountsOver(strings.NewReader(tt.table), "/run/berth/volumes")
		on := append([]mount{{}}, mounts...)[len(mounts)]
		if on.at != tt.at || on.shared != tt.shared || err != nil {
			t.Errorf("%s: %+v, %v", tt.name, on, err)
		}
	}
}
