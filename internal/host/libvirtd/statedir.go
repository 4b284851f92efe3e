package libvirtd

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// stateDir is where libvirt gives every domain a directory, which its QEMU must be able to read.
const stateDir = "var/lib/libvirt/qemu"

// checkStateDir checks that a QEMU with a user of its own, and this group, gets through to its domain's
// directory. Debian's packages make the one above it for their own user's QEMUs alone, and then every QEMU ends as it
// starts; Ubuntu's let that group through.
func checkStateDir(path string, group uint32) error {
	const pass, groupPass = 0o001, 0o010
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist): // libvirt is about to make it, or keeps it elsewhere
		return nil
	case err != nil:
		return fmt.Errorf("checking /%s: %w", stateDir, err)
	case info.Mode().Perm()&groupPass != 0 && group != 0 && groupOf(info) == group:
		return nil
	case info.Mode().Perm()&pass == 0:
		return fmt.Errorf("/%s has mode %#o, so the QEMU users of guests cannot traverse it", stateDir, info.Mode().Perm())
	}
	return nil
}

func groupAt(path string) uint32 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return groupOf(info)
}

// groupOf is a file's group, root's if that cannot be known.
func groupOf(info os.FileInfo) uint32 {
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Gid
	}
	return 0
}
