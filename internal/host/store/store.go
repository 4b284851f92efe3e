package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Names that begin so are unfinished, or on their way out: nothing looks into them.
const (
	newPrefix = ".new-"
	oldPrefix = ".old-"
)

// QEMU's users reach their own files through these directories, and can list none of them.
const dirMode = 0o711

// Store is the store of one node. It is safe for concurrent use, also by several processes.
type Store struct {
	// Trusted, if there is one, is called when Has fails no more; see Identify. It must not call the store.
	Trusted func()

	root, images, vms, tools, seeds string
	reserve                         Reserve

	mu       sync.Mutex
	swept    bool
	distrust error // why it may not be the node's store; see Identify
}

// New is the store in root, which must be on a file system that keeps its files, and in run, on a tmpfs. Whether they
// can be used, Check tells.
func New(root, run string, reserve Reserve) *Store {
	return &Store{
		root:    root,
		images:  filepath.Join(root, "images"),
		vms:     filepath.Join(root, "vms"),
		tools:   filepath.Join(root, "tools"),
		seeds:   filepath.Join(run, "seeds"),
		reserve: reserve,
	}
}

// Check makes the directories that are missing, removes what was left unfinished by processes that were gone when this
// one began, and proves that the disk takes a file. A store that failed is repaired once Check returns no error.
func (s *Store) Check() error {
	for _, dir := range []string{s.root, s.images, s.vms, s.tools, s.seeds} {
		if err := os.MkdirAll(dir, dirMode); err != nil {
			return classify("making the store", err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.swept {
		if err := s.locked(exclusive, s.sweep); err != nil {
			return classify("removing unfinished files from the store", err)
		}
		s.swept = true
	}
	f, err := openTmpfile(s.vms, 0o600) // it never has a name, and goes at once
	if err == nil {
		_, err = f.Write(make([]byte, 4096))
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return classify("writing to the store", err)
	}
	return inMemory(s.seeds)
}

// sweep removes what was left behind, but for what imports go on with. An import in progress, of this or another process,
// holds a lock on its directory.
func (s *Store) sweep() error {
	var errs []error
	for _, dir := range []string{s.images, s.vms} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !strings.HasPrefix(e.Name(), newPrefix) && !strings.HasPrefix(e.Name(), oldPrefix) {
				continue
			}
			path := filepath.Join(dir, e.Name())
			f, err := lockedFile(path, os.O_RDONLY, unix.LOCK_EX|unix.LOCK_NB)
			if errors.Is(err, unix.EWOULDBLOCK) {
				continue
			}
			if err == nil {
				_ = f.Close()
			}
			if dir != s.images || !s.keepPart(path) {
				errs = append(errs, os.RemoveAll(path))
			}
		}
	}
	return errors.Join(append(errs, s.sweepLinks())...)
}

// How the store is locked, on this node.
const (
	unlocked = 0
	// shared is for what relies on images staying where they are.
	shared = unix.LOCK_SH
	// exclusive is for what changes who uses what; nothing else of it happens meanwhile. It takes milliseconds: nothing may
	// wait inside.
	exclusive = unix.LOCK_EX
)

func (s *Store) locked(how int, do func() error) error {
	if how == unlocked {
		return do()
	}
	f, err := lockedFile(filepath.Join(s.root, "lock"), os.O_RDWR|os.O_CREATE, how)
	if err != nil {
		return fmt.Errorf("locking the store: %w", err)
	}
	defer f.Close()
	return do()
}

// lockedFile opens a file or directory with a lock that ends with the file, or with the process.
func lockedFile(path string, flags, how int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		if err = unix.Flock(int(f.Fd()), how); err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, err
		}
	}
}

// classify says what was being done, and knows a disk that is full or fails.
func classify(doing string, err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.NewTransient(v1alpha1.ReasonStoreFull, fmt.Errorf("%s: the node's disk is full: free some space: %w", doing, err))
	case errors.Is(err, unix.EIO), errors.Is(err, unix.EROFS): // a file system that failed may let itself be read only
		return fault.NewTransient(v1alpha1.ReasonStoreFailed, fmt.Errorf("%s: the node's disk fails: read the kernel log of the node: %w", doing, err))
	default:
		return fault.Doing(err, "%s", doing)
	}
}

// allocated is the space that a file takes, in bytes.
func allocated(info fs.FileInfo) int64 { return info.Sys().(*syscall.Stat_t).Blocks * 512 }

// directories are the names of those in a directory that are complete.
func directories(path string) (names []string, err error) {
	entries, err := os.ReadDir(path)
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// exists tells whether there is any such file. A disk that fails is an error, not an absence.
func exists(paths ...string) (bool, error) {
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

// syncDir makes renames in a directory last.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// replace makes a file, link or directory under another name, and then gives it its own, in place of what has that. Only
// one may do so at a time.
func replace(path string, create func(temporary string) error) error {
	dir := filepath.Dir(path)
	temporary := filepath.Join(dir, newPrefix+filepath.Base(path))
	err := os.RemoveAll(temporary) // what a crash left
	if err == nil {
		err = create(temporary)
	}
	if err == nil {
		err = os.Rename(temporary, path)
	}
	if err != nil {
		_ = os.RemoveAll(temporary)
		return err
	}
	return syncDir(dir)
}

// writeJSON replaces a small file, whole or not at all. Only one may write it at a time.
func writeJSON(path string, mode fs.FileMode, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return replace(path, func(temporary string) error {
		f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
		if err != nil {
			return err
		}
		_, err = f.Write(append(b, '\n'))
		return errors.Join(err, f.Sync(), f.Close())
	})
}

// readJSON reads what writeJSON wrote; a file that is absent leaves v as it is.
func readJSON(path string, v any) error {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fault.Doing(json.Unmarshal(b, v), "reading %s", path)
}

// remove removes a directory, in sight only until unused has agreed. One that is absent is no error.
func (s *Store) remove(path string, unused func() error) error {
	old := filepath.Join(filepath.Dir(path), oldPrefix+filepath.Base(path))
	err := s.locked(exclusive, func() error {
		if err := errors.Join(unused(), os.RemoveAll(old)); err != nil {
			return err
		}
		if err := os.Rename(path, old); err != nil {
			return err
		}
		return syncDir(filepath.Dir(path))
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	// Large files take a while, so outside of the lock.
	return errors.Join(err, os.RemoveAll(old))
}

// publish writes a file that appears whole under its name or not at all, and is left alone if it is there. It
// belongs to owner.
func publish(path string, mode uint32, owner int, content []byte) error {
	dir := filepath.Dir(path)
	f, err := openTmpfile(dir, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(content)
	if err := errors.Join(err, f.Chown(owner, -1), f.Sync()); err != nil {
		return err
	}
	// The descriptor's own name is the only one that it has.
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "link", Path: path, Err: err}
	}
	return syncDir(dir)
}

// openTmpfile opens a new file in dir that has no name.
func openTmpfile(dir string, mode uint32) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, mode)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) {
		return nil, fault.NewTransient(v1alpha1.ReasonStoreFailed, fmt.Errorf(
			"the file system of %s does not support O_TMPFILE: put it on ext4, xfs or btrfs: %w", dir, err))
	}
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// buffered are the file systems that may refuse O_DIRECT, or fake it.
var buffered = []int64{unix.TMPFS_MAGIC, unix.RAMFS_MAGIC, unix.V9FS_MAGIC, unix.ECRYPTFS_SUPER_MAGIC}

// TakesDirectIO tells whether the file system of a disk can do without the host's cache. The file itself, which may be a
// tenant's, is not opened for that, only its directory is looked at, which is ours.
func (s *Store) TakesDirectIO(path string) bool {
	var fs unix.Statfs_t
	err := unix.Statfs(filepath.Dir(path), &fs)
	return err == nil && !slices.Contains(buffered, int64(fs.Type)) //nolint:unconvert // another type on other machines
}
