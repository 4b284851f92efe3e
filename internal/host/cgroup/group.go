package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// ErrNoProcess says that the process has ended.
var ErrNoProcess = errors.New("process has ended")

// unified is the key of the v2 hierarchy in a Group.
const unified = ""

// Group is where a process is: a path in each hierarchy. The zero Group is nowhere.
type Group struct {
	// paths has a path for each hierarchy, by what /proc/PID/cgroup calls it: "memory", "cpu,cpuacct", "name=systemd"
	// or "" for v2.
	paths map[string]string
}

// Of returns where the process is, as seen from the caller's cgroup namespace; ErrNoProcess when it has ended.
func Of(pid int) (Group, error) {
	var g Group
	data, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		err = ErrNoProcess
	}
	if err == nil {
		g, err = Parse(data)
	}
	return g, fault.Doing(err, "reading cgroups of process %d", pid)
}

// Parse reads lines like "4:memory:/path" and "0::/path", see cgroups(7).
func Parse(data []byte) (Group, error) {
	g := Group{paths: map[string]string{}}
	for line := range bytes.Lines(data) {
		fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), ":", 3)
		if len(fields) != 3 || !strings.HasPrefix(fields[2], "/") {
			return Group{}, fmt.Errorf("malformed line %.100q", line)
		}
		// A process that outlived its cgroup, a zombie, shows so on v2.
		g.paths[fields[1]] = path.Clean(strings.TrimSuffix(fields[2], " (deleted)"))
	}
	if len(g.paths) == 0 {
		return Group{}, errors.New("it names no cgroup")
	}
	return g, nil
}

// String is for messages.
func (g Group) String() string {
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(g.paths)) {
		parts = append(parts, name+":"+g.paths[name])
	}
	return strings.Join(parts, " ")
}
