package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// What is read of a command line, in bytes: QEMU's has its UUID early. maxCmdline is for one that has none in its first
// firstCmdline, as when a CPU with hundreds of features comes before it.
const (
	firstCmdline = 1 << 13
	maxCmdline   = 1 << 16
)

// maxStatus bounds what is read of a process's status, in bytes.
const maxStatus = 1 << 14

// Process is a QEMU.
type Process struct {
	PID int
	// UID is the user it runs as.
	UID uint32
}

// Find returns every QEMU whose -uuid is the given one. Processes inside of
// containers do not count: a guest's neighbour could call anything so. An error
// means that it is unknown whether there is one.
func Find(uuid string) ([]Process, error) {
	pids, err := scans.join()
	if err != nil {
		return nil, err
	}
	var found []Process
	for _, pid := range pids[uuid] {
		p, is, err := inspect(pid, uuid)
		if err != nil {
			return nil, err
		}
		if is {
			found = append(found, p)
		}
	}
	return found, nil
}

// PIDsByUUID returns the processes that may be QEMUs, from one scan of /proc: their IDs by UUID. Find tells who is one.
func PIDsByUUID() (map[string][]int, error) { return scans.join() }

// scanQueue lets callers that wait at the same time share one scan of /proc: a host has many processes, and a resync of a
// hundred guests asks for each. A scan begins after everybody who shares it has asked, so that it is as good as their own.
type scanQueue struct {
	scanning sync.Mutex // held during a scan

	mu   sync.Mutex
	next *scan // has not begun
}

// scan is one scan of /proc: the processes that may be QEMUs, by their UUID.
type scan struct {
	done chan struct{}
	pids map[string][]int
	err  error
}

var scans scanQueue

// join returns what a scan found that began after the call.
func (q *scanQueue) join() (map[string][]int, error) {
	q.mu.Lock()
	l := q.next
	leads := l == nil
	if leads {
		l = &scan{done: make(chan struct{})}
		q.next = l
	}
	q.mu.Unlock()
	if leads {
		q.scanning.Lock()
		q.mu.Lock()
		q.next = nil
		q.mu.Unlock()
		l.pids, l.err = scanProcesses()
		close(l.done)
		q.scanning.Unlock()
	}
	<-l.done
	return l.pids, l.err
}

func scanProcesses() (map[string][]int, error) {
	pids, err := listPIDs()
	if err != nil {
		return nil, err
	}
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("reading the PID namespace of this process: %w", err)
	}
	found := map[string][]int{}
	for _, pid := range pids {
		if inContainer(pid, ours) {
			continue
		}
		uuid, _, err := uuidFromCmdline(pid)
		if err != nil {
			return nil, err
		}
		if uuid != "" {
			found[uuid] = append(found[uuid], pid)
		}
	}
	return found, nil
}

func listPIDs() ([]int, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	pids := make([]int, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// inContainer tells whether a process lives in a PID namespace below ours. That is asked before all else, since
// everything else is the process's own choice: what its program and its arguments are called, and how long it takes to
// read either. Where a security module hides the namespace, the status says the same, which costs more.
func inContainer(pid int, ours string) bool {
	dir := "/proc/" + strconv.Itoa(pid)
	if theirs, err := os.Readlink(dir + "/ns/pid"); err == nil {
		return theirs != ours
	}
	status, err := readStart(dir+"/status", maxStatus)
	_, nested := parseStatus(string(status))
	return err == nil && nested
}

// uuidFromCmdline returns the UUID in the command line of a process of the host, if its program is a QEMU; "" if it has
// none or is none; and why its program may not be asked for (a security module hides it), which matters only if the rest
// fits.
func uuidFromCmdline(pid int) (uuid string, exeErr, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	// The program comes first, since it is the cheaper question and nearly all are none of QEMU.
	exe, exeErr := os.Readlink(dir + "/exe")
	if hasExited(exeErr) || exeErr == nil && !isQEMU(strings.TrimSuffix(exe, " (deleted)")) {
		return "", nil, nil
	}
	for limit := firstCmdline; ; limit = maxCmdline {
		cmdline, err := readStart(dir+"/cmdline", limit)
		if hasExited(err) {
			return "", nil, nil
		}
		if err != nil {
			return "", nil, fmt.Errorf("reading the command line of process %d: %w", pid, err)
		}
		if uuid = parseUUID(cmdline); uuid != "" || len(cmdline) < limit || limit == maxCmdline {
			return uuid, exeErr, nil
		}
	}
}

func inspect(pid int, uuid string) (p Process, is bool, err error) {
	dir := "/proc/" + strconv.Itoa(pid)
	status, err := readStart(dir+"/status", maxStatus)
	if hasExited(err) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("reading the status of process %d: %w", pid, err)
	}
	if ended, nested := parseStatus(string(status)); ended || nested {
		return p, false, nil
	}
	named, exeErr, err := uuidFromCmdline(pid)
	if err != nil || named != uuid {
		return p, false, err
	}
	if exeErr != nil {
		return p, false, fmt.Errorf("reading the program of process %d: %w", pid, exeErr)
	}
	info, err := os.Stat(dir)
	if hasExited(err) {
		return p, false, nil
	}
	if err != nil {
		return p, false, fmt.Errorf("reading the user of process %d: %w", pid, err)
	}
	return Process{PID: pid, UID: ownerOf(info)}, true, nil
}

// parseUUID reads the first -uuid, which is libvirt's own: text of a tenant's, such
// as a kernel's command line, comes after it.
func parseUUID(cmdline []byte) string {
	_, after, _ := bytes.Cut(cmdline, []byte("\x00-uuid\x00"))
	uuid, _, whole := bytes.Cut(after, []byte{0})
	if !whole {
		return ""
	}
	return string(uuid)
}

func ownerOf(info fs.FileInfo) uint32 { return info.Sys().(*syscall.Stat_t).Uid }

func isQEMU(exe string) bool {
	name := filepath.Base(exe)
	return strings.HasPrefix(name, "qemu-") || name == "kvm"
}

// parseStatus reads /proc/PID/status: whether the process has ended, and whether
// it lives in a PID namespace below ours.
func parseStatus(status string) (ended, nested bool) {
	for line := range strings.Lines(status) {
		key, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		switch key {
		case "State":
			ended = len(fields) > 0 && (fields[0] == "Z" || fields[0] == "X")
		case "NSpid":
			nested = len(fields) > 1
		}
	}
	return ended, nested
}

// VhostThreads returns the kernel threads that move data for a QEMU: before Linux 6.4 vhost has some of its own.
func VhostThreads(pid int) ([]int, error) {
	pids, err := listPIDs()
	if err != nil {
		return nil, err
	}
	var helpers []int
	want := "vhost-" + strconv.Itoa(pid)
	for _, p := range pids {
		dir := "/proc/" + strconv.Itoa(p)
		comm, err := readStart(dir+"/comm", 64)
		if hasExited(err) || err == nil && strings.TrimSpace(string(comm)) != want {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the name of process %d: %w", p, err)
		}
		// Any process can name itself so and would be moved into the guest's cgroup: only the kernel says what is its own.
		stat, err := readStart(dir+"/stat", 4096)
		if hasExited(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("reading the status of process %d: %w", p, err)
		}
		if isKernelThread(string(stat)) {
			helpers = append(helpers, p)
		}
	}
	return helpers, nil
}

// isKernelThread reads the flag PF_KTHREAD in field 9 of /proc/PID/stat
// (proc_pid_stat(5)). Field 2 is the process's own choice of a name and may hold
// anything but ends with the last parenthesis.
func isKernelThread(stat string) bool {
	const (
		kthread = 0x00200000
		flags   = 9 - 3 // counted from field 3
	)
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) <= flags {
		return false
	}
	f, err := strconv.ParseUint(fields[flags], 10, 64)
	return err == nil && f&kthread != 0
}

// readStart reads the first bytes of a file, limit at most. It makes the system
// calls itself: a host has many processes, and the runtime would ask the poller
// about each file first.
func readStart(path string, limit int) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buffer := make([]byte, 0, min(limit, 4096))
	for len(buffer) < limit {
		if len(buffer) == cap(buffer) {
			buffer = slices.Grow(buffer, len(buffer))
		}
		n, err := unix.Read(fd, buffer[len(buffer):min(cap(buffer), limit)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			break
		}
		buffer = buffer[:len(buffer)+n]
	}
	return buffer, nil
}

// hasExited: the process ended while its files were read.
func hasExited(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
