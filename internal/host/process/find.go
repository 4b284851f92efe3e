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

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// What is read of a command line, in bytes: QEMU's has its UUID early. maxCmdline is for one that has none in its first
// firstCmdline, as when a CPU with hundreds of features comes before it.
const (
	firstCmdline = 1 << 13
	maxCmdline   = 1 << 16
)

// maxStatus bounds what is read of a process's status, maxName of its name, in bytes.
const (
	maxStatus = 1 << 14
	maxName   = 64
)

// Process is a QEMU.
type Process struct {
	PID int
	// UID is the user it runs as.
	UID uint32
}

// Table is the host's own processes.
type Table struct{}

// Find returns every QEMU whose -uuid is the given one. Processes inside of containers do not count: a guest's neighbour
// could call anything so. An error means that it is unknown whether there is one.
func (Table) Find(uuid string) ([]Process, error) {
	pids, err := scans.join()
	if err != nil {
		return nil, err
	}
	var found []Process
	for _, pid := range pids[uuid] {
		p, is, err := inspect(pid, uuid)
		if err != nil && !hasExited(err) {
			return nil, err
		}
		if is {
			found = append(found, p)
		}
	}
	return found, nil
}

// PIDsByUUID returns the processes that may be QEMUs, from one scan of /proc: their IDs by UUID. Find tells who is one.
func (Table) PIDsByUUID() (map[string][]int, error) { return scans.join() }

// ErrAbsent says that no process has the name.
var ErrAbsent = errors.New("no such process on this host")

// Named returns a process of that name (proc_pid_comm(5)) with its arguments, or ErrAbsent. Those inside of containers do not
// count: they may call themselves so.
func Named(name string) (pid int, args []string, err error) {
	pids, err := hostPIDs()
	if err != nil {
		return 0, nil, err
	}
	for _, pid := range pids {
		if comm, err := readStart(pid, "comm", maxName); err != nil || strings.TrimSpace(string(comm)) != name {
			continue
		}
		if cmdline, err := readStart(pid, "cmdline", maxCmdline); err == nil && len(cmdline) > 0 {
			return pid, strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00"), nil
		}
	}
	return 0, nil, fmt.Errorf("looking for %s: %w", name, ErrAbsent)
}

// scanQueue lets callers that wait at the same time share one scan of /proc: a host has many processes, and a resync of a
// hundred guests asks for each. A scan begins after everybody who shares it has asked, so that it is as good as their own.
type scanQueue struct {
	scanning sync.Mutex // held during a scan

	mu   sync.Mutex
	next func() (map[string][]int, error) // a scan that has not begun
}

var scans scanQueue

// join returns what a scan found that began after the call: the processes that may be QEMUs, by their UUID.
func (q *scanQueue) join() (map[string][]int, error) {
	q.mu.Lock()
	if q.next == nil {
		q.next = sync.OnceValues(func() (map[string][]int, error) {
			q.scanning.Lock()
			defer q.scanning.Unlock()
			q.mu.Lock()
			q.next = nil
			q.mu.Unlock()
			return scanProcesses()
		})
	}
	next := q.next
	q.mu.Unlock()
	return next()
}

func scanProcesses() (map[string][]int, error) {
	pids, err := hostPIDs()
	if err != nil {
		return nil, err
	}
	found := map[string][]int{}
	for _, pid := range pids {
		uuid, _, err := uuidFromCmdline(pid)
		if err != nil && !hasExited(err) {
			return nil, err
		}
		if uuid != "" {
			found[uuid] = append(found[uuid], pid)
		}
	}
	return found, nil
}

func listPIDs() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("listing processes: %w", err)
	}
	pids := make([]int, 0, len(entries))
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// hostPIDs lists the processes that are in no container.
func hostPIDs() ([]int, error) {
	pids, err := listPIDs()
	if err != nil {
		return nil, err
	}
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, fmt.Errorf("reading the PID namespace of this process: %w", err)
	}
	return slices.DeleteFunc(pids, func(pid int) bool { return inContainer(pid, ours) }), nil
}

// inContainer tells whether a process lives in a PID namespace below ours. That is asked before all else, since
// everything else is the process's own choice: what its program and its arguments are called, and how long it takes to
// read either. Where a security module hides the namespace, the status says the same, which costs more.
func inContainer(pid int, ours string) bool {
	if theirs, err := os.Readlink(fileOf(pid, "ns/pid")); err == nil {
		return theirs != ours
	}
	status, err := readStart(pid, "status", maxStatus)
	_, nested := parseStatus(string(status))
	return err == nil && nested
}

// uuidFromCmdline returns the UUID in the command line of a process of the host, if its program is a QEMU; "" if it has none
// or is none; and why its program may not be asked for (a security module hides it), which matters only if the rest fits.
func uuidFromCmdline(pid int) (uuid string, exeErr, err error) {
	// The program comes first, since it is the cheaper question and nearly all are none of QEMU.
	exe, exeErr := os.Readlink(fileOf(pid, "exe"))
	if hasExited(exeErr) || exeErr == nil && !isQEMU(strings.TrimSuffix(exe, " (deleted)")) {
		return "", nil, nil
	}
	for limit := firstCmdline; ; limit = maxCmdline {
		cmdline, err := readStart(pid, "cmdline", limit)
		if err != nil {
			return "", nil, err
		}
		if uuid = parseUUID(cmdline); uuid != "" || len(cmdline) < limit || limit == maxCmdline {
			return uuid, exeErr, nil
		}
	}
}

func inspect(pid int, uuid string) (p Process, is bool, err error) {
	status, err := readStart(pid, "status", maxStatus)
	if err != nil {
		return p, false, err
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
	user, err := userOf(pid)
	return Process{PID: pid, UID: user}, err == nil, err
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

// userOf is the user that a process runs as.
func userOf(pid int) (uint32, error) {
	var st unix.Stat_t
	err := unix.Stat(fileOf(pid, ""), &st)
	return st.Uid, fault.Doing(err, "reading the user of process %d", pid)
}

func isQEMU(exe string) bool {
	name := filepath.Base(exe)
	return strings.HasPrefix(name, "qemu-") || name == "kvm"
}

// parseStatus reads /proc/PID/status: whether the process has ended, and whether it lives in a PID namespace below ours.
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
func (Table) VhostThreads(pid int) ([]int, error) {
	pids, err := listPIDs()
	if err != nil {
		return nil, err
	}
	var helpers []int
	want := "vhost-" + strconv.Itoa(pid)
	for _, p := range pids {
		comm, err := readStart(p, "comm", maxName)
		if err == nil && strings.TrimSpace(string(comm)) == want {
			// Any process can name itself so and would be moved into the guest's cgroup: only the kernel says what is its own.
			var stat []byte
			if stat, err = readStart(p, "stat", 4096); err == nil && isKernelThread(string(stat)) {
				helpers = append(helpers, p)
			}
		}
		if err != nil && !hasExited(err) {
			return nil, err
		}
	}
	return helpers, nil
}

// isKernelThread reads the flag PF_KTHREAD in field 9 of /proc/PID/stat (proc_pid_stat(5)). Field 2 is the process's own
// choice of a name and may hold anything but ends with the last parenthesis.
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

// fileOf is the path of a file that tells of a process.
func fileOf(pid int, name string) string { return "/proc/" + strconv.Itoa(pid) + "/" + name }

// readStart reads the first bytes of a file that tells of a process, limit at most. It makes the system calls itself: a host
// has many processes, and the runtime would ask the poller about each file first.
func readStart(pid int, name string, limit int) (text []byte, err error) {
	defer func() { err = fault.Doing(err, "reading %s of process %d", name, pid) }()
	fd, err := unix.Open(fileOf(pid, name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text = make([]byte, 0, min(limit, 4096))
	for len(text) < limit {
		text = slices.Grow(text, 1)
		n, err := unix.Read(fd, text[len(text):min(cap(text), limit)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return text, err
		}
		text = text[:len(text)+n]
	}
	return text, nil
}

// hasExited: the process ended while its files were read.
func hasExited(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH)
}
