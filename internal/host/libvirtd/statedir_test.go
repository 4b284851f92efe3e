package libvirtd

import (
	"os"
	"path/filepath"
	"testing"
)

func TestCheckStateDir(t *testing.T) {
	for name, c := range map[string]struct {
		mode os.FileMode
		open bool
	}{
		"libvirt's own":         {0o751, true},
		"everybody's":           {0o755, true},
		"Debian's":              {0o750, false},
		"what can only be read": {0o754, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "qemu")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			if err := checkStateDir(path); c.open != (err == nil) {
				t.Errorf("%v", err)
			}
		})
	}
	if err := checkStateDir(filepath.Join(t.TempDir(), "qemu")); err != nil {
		t.Errorf("one that is not there yet: %v", err)
	}
}
