package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"maps"
	"os"
	"path"
	"regexp"
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

var (
	// podPath is the path of the outermost pod, and the name of what is in it: under kubelet's cgroupfs driver, or under the
	// systemd driver, where a UID's dashes are underscores.
	podPath = regexp.MustCompile(`^(.*?/(?:kubepods(?:/burstable|/besteffort)?/pod([0-9a-zA-Z-]{1,64})|` +
		`(?:[^/]+-)?kubepods(?:-burstable|-besteffort)?-pod([0-9a-zA-Z_]{1,64})\.slice))/([^/]+)`)
	// containerDir is a container's directory: containerd's and CRI-O's under cgroupfs, then both under systemd.
	containerDir = regexp.MustCompile(`^(?:(?:crio-)?([0-9a-f]{64})|(?:cri-containerd|crio)-([0-9a-f]{64})\.scope)$`)
)

// Container tells in which pod's container the group is, or in a cgroup that the container made for itself further
// down. ok is false when it is in none, or when hierarchies disagree, as they do while a process is being moved.
//
// On v1 some hierarchies may name no container, because the runtime does not use them; these count for nothing.
func (g Group) Container() (podUID, containerID string, ok bool) {
	for _, where := range g.containers() {
		if ok && (where.pod != podUID || where.container != containerID) {
			return "", "", false
		}
		podUID, containerID, ok = where.pod, where.container, true
	}
	return podUID, containerID, ok
}

// containers are the hierarchies that name a container, with what they say of it.
func (g Group) containers() iter.Seq2[string, containerPath] {
	return func(yield func(string, containerPath) bool) {
		for hierarchy, p := range g.paths {
			if where, named := containerOf(p); named && !yield(hierarchy, where) {
				return
			}
		}
	}
}

// containerPath is what a path says of the container that it belongs to.
type containerPath struct {
	pod, container string
	// root is the path of the container's own cgroup.
	root string
}

// containerOf reads the outermost container of a path: what stands further down was
// made inside of it, and a container may give its own cgroups any name.
func containerOf(p string) (containerPath, bool) {
	pod := podPath.FindStringSubmatch(p)
	if pod == nil {
		return containerPath{}, false
	}
	m := containerDir.FindStringSubmatch(pod[4])
	if m == nil {
		return containerPath{}, false // the pod's own cgroup, or somebody else's in it, as libvirt's when born there
	}
	return containerPath{pod: pod[2] + strings.ReplaceAll(pod[3], "_", "-"), container: m[1] + m[2], root: pod[0]}, true
}
