package machine

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Spec says what a machine is made of. It is written once, before the machine starts.
type Spec struct {
	// Name is the host name, and the last part of the machine's cgroup.
	Name string
	// Address of eth0 with its prefix length, as 10.97.0.11/24.
	Address string
	// Routes lead to other subnets: subnet to gateway.
	Routes map[string]string
	// Private paths are directories that the machine has for itself. They stay
	// in the machine's directory, so they survive its restart.
	Private []string
	// Shields replace files of /proc/sys that belong to all machines, so that a
	// service may write its wish without changing the machine below.
	Shields map[string]string
	// Services are started in this order.
	Services []Service
	// QEMU is the command line of a machine that is emulated. Its system, which has all the rest of what stands here
	// but the address, is in its disks.
	QEMU []string
	// SSHKey is the path of the key that opens an emulated machine.
	SSHKey string
}

// Service is one process that is kept running.
type Service struct {
	Name string
	Args []string
	// Env is added to PATH and HOME.
	Env []string
	// After is the address of another service that must answer first:
	// unix:PATH or tcp:HOST:PORT.
	After string
}

// Dir is a machine's directory: spec.json, pid, log/ and root/ with what is private.
type Dir string

func (d Dir) specPath() string { return filepath.Join(string(d), "spec.json") }
func (d Dir) pidPath() string  { return filepath.Join(string(d), "pid") }

// PrivatePath is where the machine's own path is seen from outside.
func (d Dir) PrivatePath(path string) string { return filepath.Join(string(d), "root", path) }

// LogPath of a service; init's own is that of the service "init".
func (d Dir) LogPath(service string) string {
	return filepath.Join(string(d), "log", service+".log")
}

func (d Dir) read() (Spec, error) {
	var s Spec
	raw, err := os.ReadFile(d.specPath())
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(raw, &s)
}

// identity tells one process from a later one with the same number.
type identity struct{ pid, start int }

func (i identity) String() string { return fmt.Sprintf("%d %d\n", i.pid, i.start) }

func identify(pid int) (identity, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return identity{}, err
	}
	start, err := startTime(string(raw))
	return identity{pid, start}, err
}

// startTime reads field 22 of proc_pid_stat(5). The second field may hold blanks and parentheses.
func startTime(stat string) (int, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("reading a process's start time from %q", stat)
	}
	return strconv.Atoi(fields[19])
}

// Pid of the machine's PID 1 as seen from here, or 0 when it is not running.
func (d Dir) Pid() int {
	raw, err := os.ReadFile(d.pidPath())
	if err != nil {
		return 0
	}
	var was identity
	if _, err := fmt.Sscan(string(raw), &was.pid, &was.start); err != nil {
		return 0
	}
	if now, err := identify(was.pid); err != nil || now != was {
		return 0
	}
	return was.pid
}
