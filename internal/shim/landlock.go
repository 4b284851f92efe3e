package shim

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fileAccess is all that the first version of Landlock has of files (landlock(7)): up to and with the making of links.
const fileAccess = unix.LANDLOCK_ACCESS_FS_MAKE_SYM<<1 - 1

// confine leaves this process those files alone that it needs, with the access to each: a guest that took the shim over would
// else read the berth's Secrets and volumes, which kubelet lets the pod's fsGroup read. A kernel without Landlock, and a
// build with cgo, in which Go cannot change all threads at once, leave it as it is.
func confine(files map[string]uint64) error {
	attr := unix.LandlockRulesetAttr{Handled_access_fs: fileAccess}
	// The first version's attributes end with the first field; later ones may be longer.
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if errno == unix.ENOSYS || errno == unix.EOPNOTSUPP {
		return nil
	}
	if errno != 0 {
		return fmt.Errorf("making a Landlock ruleset: %w", errno)
	}
	rules := os.NewFile(fd, "landlock")
	defer rules.Close()
	for path, access := range files {
		if err := allow(rules, path, access); err != nil {
			return fmt.Errorf("allowing %s by Landlock: %w", path, err)
		}
	}
	_, _, errno = syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, rules.Fd(), 0, 0)
	if errno != 0 && errno != unix.ENOTSUP {
		return fmt.Errorf("confining the shim by Landlock: %w", errno)
	}
	return nil
}

// allow adds a file, or a directory with all below it, to a ruleset. One that is not there is none to read.
func allow(rules *os.File, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: access, Parent_fd: int32(fd)} //nolint:gosec // a descriptor
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, rules.Fd(), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
