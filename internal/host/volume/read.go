package volume

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrTooLarge says that a file is longer than the caller wants to read.
var ErrTooLarge = errors.New("file is too large")

// maxMountInfo bounds what is read of a process's mounts, in bytes.
const maxMountInfo = 1 << 20

// ReadFile reads a regular file of at most limit bytes by its absolute path in
// the mount namespace and root of the process pid, which the caller holds by a
// pidfd. It has to be on a tmpfs that is mounted there, as kubelet mounts Secrets:
// whoever mounts anything else into the berth could have the reader wait for his
// server for ever, and no deadline ends that. Links are followed inside that tmpfs
// only. It needs CAP_SYS_PTRACE. A missing file or mount is fs.ErrNotExist, a
// longer file ErrTooLarge.
func ReadFile(pid int, path string, limit int64) ([]byte, error) {
	mount, err := secretMount(pid, path)
	if err != nil {
		return nil, err
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the root of process %d: %w", pid, err)
	}
	defer unix.Close(root)
	dir, err := unix.Openat2(root, mount, &unix.OpenHow{ // without links, so that it leads over no other mount
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: mount, Err: err}
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, strings.TrimPrefix(path, mount+"/"), &unix.OpenHow{
		// Without O_NONBLOCK a FIFO would hold us; it changes nothing of a regular file.
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("reading %s: it is no regular file", path)
	}
	content, err := io.ReadAll(io.LimitReader(file, limit+1))
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("reading %s: %w", path, ErrTooLarge)
	}
	return content, nil
}

// secretMount returns the mount point of the tmpfs that a path is on. The kernel's table of mounts tells, which touches
// none of them.
func secretMount(pid int, path string) (string, error) {
	table, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return "", fmt.Errorf("listing the mounts of process %d: %w", pid, err)
	}
	defer table.Close()
	text, err := io.ReadAll(io.LimitReader(table, maxMountInfo))
	if err != nil {
		return "", fmt.Errorf("listing the mounts of process %d: %w", pid, err)
	}
	return tmpfsOf(string(text), path)
}

// tmpfsOf finds it in a table of mounts, as /proc/PID/mountinfo has them (proc_pid_mountinfo(5)): field 5 is the mount
// point, and the type follows a field "-". All that is mounted on the way has to be tmpfs.
func tmpfsOf(mounts, path string) (at string, err error) {
	for line := range strings.Lines(mounts) {
		before, after, _ := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 5 || len(kind) == 0 || fields[4] == "/" || !strings.HasPrefix(path, fields[4]+"/") {
			continue
		}
		if kind[0] != "tmpfs" {
			return "", fmt.Errorf("reading %s: %s is mounted at %s, want a tmpfs of kubelet's: mount nothing else there", path, kind[0], fields[4])
		}
		if len(fields[4]) > len(at) {
			at = fields[4]
		}
	}
	if at == "" {
		return "", fmt.Errorf("reading %s: nothing is mounted there: %w", path, fs.ErrNotExist)
	}
	return at, nil
}
