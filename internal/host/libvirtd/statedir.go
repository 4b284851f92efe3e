package libvirtd

import (
	"errors"
	"fmt"
	"os"
)

// stateDir is where libvirt gives every domain a directory, which its QEMU must be able to read.
const stateDir = "var/lib/libvirt/qemu"

// checkStateDir checks that a QEMU with a user of its own gets through to its domain's directory. Debian's packages make
// the one above it for their own user's QEMUs alone, and then every QEMU ends as it starts.
func checkStateDir(path string) error {
	const pass = 0o001
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist): // libvirt is about to make it, or keeps it elsewhere
		return nil
	case err != nil:
		return fmt.Errorf("looking at /%s: %w", stateDir, err)
	case info.Mode().Perm()&pass == 0:
		return fmt.Errorf("/%s has mode %#o, so no guest's own QEMU user gets through it", stateDir, info.Mode().Perm())
	}
	return nil
}
