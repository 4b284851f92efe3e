package libvirtd

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/test/env"
)

func TestCheckKVM(t *testing.T) {
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root, to make devices")
	}
	for name, tc := range map[string]struct {
		mode   os.FileMode
		group  int
		usable bool
	}{
		"Debian's and Fedora's":   {0o660, 107, true},
		"everybody's":             {0o666, 0, true},
		"root's alone":            {0o600, 0, false},
		"root's group's":          {0o660, 0, false},
		"the group can read only": {0o640, 107, false},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "kvm")
			if err := unix.Mknod(path, unix.S_IFCHR, int(unix.Mkdev(1, 3))); err != nil {
				t.Fatal(err)
			}
			if err := os.Chown(path, 0, tc.group); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(path, tc.mode); err != nil {
				t.Fatal(err)
			}
			if err := checkKVM(path); tc.usable != (err == nil) {
				t.Errorf("%v", err)
			}
		})
	}
	if checkKVM(t.TempDir()) == nil || checkKVM(filepath.Join(t.TempDir(), "kvm")) == nil {
		t.Error("what is no device is usable")
	}
}
