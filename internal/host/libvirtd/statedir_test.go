package libvirtd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestCheckStateDir(t *testing.T) {
	for name, c := range map[string]struct {
		mode os.FileMode
		kvm  int // the group of /dev/kvm; the directory's is 107
		open bool
	}{
		"libvirt's own":         {0o751, 108, true},
		"everybody's":           {0o755, 108, true},
		"Debian's":              {0o750, 108, false},
		"what can only be read": {0o754, 108, false},
		"Ubuntu's":              {0o750, 107, true},
		"its user's alone":      {0o700, 107, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "qemu")
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, c.mode); err != nil {
				t.Fatal(err)
			}
			kvm := filepath.Join(t.TempDir(), "kvm")
			if err := os.WriteFile(kvm, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(os.Chown(path, -1, 107), os.Chown(kvm, -1, c.kvm)); err != nil {
				t.Skip("only root gives files to a group:", err)
			}
			if err := checkStateDir(path, kvm); c.open != (err == nil) {
				t.Errorf("%v", err)
			}
		})
	}
	if err := checkStateDir(filepath.Join(t.TempDir(), "qemu"), ""); err != nil {
		t.Errorf("one that is not there yet: %v", err)
	}
}
