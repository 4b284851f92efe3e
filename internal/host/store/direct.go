package store

import (
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// buffered are the file systems that may refuse O_DIRECT, or fake it.
var buffered = []int64{unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.V9FS_MAGIC, unix.ECRYPTFS_SUPER_MAGIC}

// TakesDirectIO tells whether the file system of a disk can do without the host's cache. The file itself, which may be a
// tenant's, is not opened for that, only its directory is looked at, which is ours.
func (s *Store) TakesDirectIO(path string) bool {
	var fs unix.Statfs_t
	err := unix.Statfs(filepath.Dir(path), &fs)
	return err == nil && !slices.Contains(buffered, int64(fs.Type)) //nolint:unconvert // another type on other machines
}
