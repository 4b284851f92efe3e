package volume

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// ErrTooLarge says that a file is longer than the caller wants to read.
var ErrTooLarge = errors.New("file is too large")

// maxMountInfo bounds what is read of a process's mounts, and a line of the host's, in bytes.
const maxMountInfo = 1 << 20

// ReadFile reads a regular file of at most limit bytes by its absolute path in the mount namespace and root of the
// process pid, which the caller holds by a pidfd. It has to be on a tmpfs that is mounted there, as kubelet mounts
// Secrets: whoever mounts anything else into the berth could have the reader wait for his server for ever, and no
// deadline ends that. Links are followed inside that tmpfs only. It needs CAP_SYS_PTRACE. A missing file or mount is
// fs.ErrNotExist, a longer file ErrTooLarge.
func ReadFile(pid int, path string, limit int64) ([]byte, error) {
	mount, err := secretMount(pid, path)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the root of process %d: %w", pid, err)
	}
	defer root.Close()
	// Without links, so that it leads over no other mount.
	dir, err := openIn(root, mount, unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// Without O_NONBLOCK a FIFO would hold us; it changes nothing of a regular file.
	file, err := openIn(dir, strings.TrimPrefix(path, mount+"/"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY,
		unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	defer file.Close()
	var content []byte
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no regular file")
	}
	if err == nil {
		content, err = io.ReadAll(io.LimitReader(file, limit+1))
	}
	if err == nil && int64(len(content)) > limit {
		content, err = nil, ErrTooLarge
	}
	return content, fault.Doing(err, "reading %s", path)
}

// openIn opens a path in a directory, as openat2(2) does.
func openIn(dir *os.File, path string, flags, resolve uint64) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve})
	if err != nil {
		return nil, pathError("openat2", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// secretMount returns the mount point of the tmpfs that a path is on. The kernel's table of mounts tells, which touches
// none of them.
func secretMount(pid int, path string) (string, error) {
	table, err := os.Open(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		return "", fmt.Errorf("listing the mounts of process %d: %w", pid, err)
	}
	defer table.Close()
	at, err := tmpfsOf(io.LimitReader(table, maxMountInfo), path)
	return at, fault.Doing(err, "reading %s", path)
}

// tmpfsOf finds it in a table of mounts. All that is mounted on the way has to be tmpfs.
func tmpfsOf(table io.Reader, path string) (at string, err error) {
	mounts, err := mountsOver(table, path)
	for _, m := range mounts {
		switch {
		case m.at == "/":
		case m.kind != "tmpfs":
			return "", fmt.Errorf("%s is mounted at %s, want a tmpfs of kubelet's: mount nothing else there", m.kind, m.at)
		default:
			at = m.at
		}
	}
	if at == "" && err == nil {
		err = fmt.Errorf("nothing is mounted there: %w", fs.ErrNotExist)
	}
	return at, err
}

// mount is a line of a table of mounts.
type mount struct {
	at, kind string
	shared   bool
}

// mountsOver returns the mounts on the way to a path, the one that it lies on last, from a table of mounts
// (proc_pid_mountinfo(5)): field 5 is the mount point, optional fields begin with the seventh, and the type follows a field
// "-". Of two at one point the later one is above.
func mountsOver(table io.Reader, path string) (mounts []mount, err error) {
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, maxMountInfo) // a line of an overlay may be long
	for lines.Scan() {
		before, after, _ := strings.Cut(lines.Text(), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if len(fields) < 6 || len(kind) == 0 || !strings.HasPrefix(path, strings.TrimSuffix(fields[4], "/")+"/") {
			continue
		}
		shared := slices.ContainsFunc(fields[6:], func(option string) bool { return strings.HasPrefix(option, "shared:") })
		mounts = append(mounts, mount{fields[4], kind[0], shared})
	}
	slices.SortStableFunc(mounts, func(a, b mount) int { return cmp.Compare(len(a.at), len(b.at)) })
	return mounts, lines.Err()
}
