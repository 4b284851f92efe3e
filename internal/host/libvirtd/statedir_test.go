package libvirtd

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCheckStateDir(t *testing.T) {
	for name, c := range map[string]struct {
		mode  os.FileMode
		group bool // it belongs to QEMU's group
		open  bool
	}{
		"libvirt's own":         {0o751, false, true},
		"everybody's":           {0o755, false, true},
		"Debian's":              {0o750, false, false},
		"what can only be read": {0o754, false, false},
		"Ubuntu's":              {0o750, true, true},
		"its user's alone":      {0o700, true, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "qemu")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			if os.Getuid() == 0 { // whose own group counts for nothing
				if err := os.Chown(path, -1, 107); err != nil {
					t.Fatal(err)
				}
			}
			var st unix.Stat_t
			if err := unix.Stat(path, &st); err != nil {
				t.Fatal(err)
			}
			qemu := st.Gid
			if !c.group {
				qemu++
			}
			if err := checkStateDir(path, qemu); c.open != (err == nil) {
				t.Errorf("%v", err)
			}
		})
	}
	if err := checkStateDir(filepath.Join(t.TempDir(), "qemu"), 0); err != nil {
		t.Errorf("one that is not there yet: %v", err)
	}
}
