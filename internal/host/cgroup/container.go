package cgroup

import (
	"regexp"
	"slices"
	"strings"
)

var (
	// podDir is a pod's directory under kubelet's cgroupfs driver.
	podDir = regexp.MustCompile(`^pod([0-9a-zA-Z-]{1,64})$`)
	// podSlice is a pod's slice under the systemd driver; a UID's dashes are underscores in it.
	podSlice = regexp.MustCompile(`^((?:[^/]+-)?kubepods(?:-burstable|-besteffort)?)-pod([0-9a-zA-Z_]{1,64})\.slice$`)
	// containerDir is a container's directory: containerd's and CRI-O's under cgroupfs, then both under systemd.
	containerDir = regexp.MustCompile(`^(?:(?:crio-)?([0-9a-f]{64})|(?:cri-containerd|crio)-([0-9a-f]{64})\.scope)$`)
)

// Container tells in which pod's container the group is, or in a cgroup that
// the container made for itself further down. ok is false when it is in none, or
// when hierarchies disagree, as they do while a process is being moved.
//
// On v1 some hierarchies may name no container, because the runtime does not
// use them; these count for nothing.
func (g Group) Container() (podUID, containerID string, ok bool) {
	for _, p := range g.paths {
		where, named := containerOf(p)
		if !named {
			continue
		}
		if ok && (where.pod != podUID || where.container != containerID) {
			return "", "", false
		}
		podUID, containerID, ok = where.pod, where.container, true
	}
	return podUID, containerID, ok
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
	parts := strings.Split(p, "/")
	for i := 1; i+1 < len(parts); i++ {
		pod, ok := podUIDOf(parts[:i+1])
		if !ok {
			continue
		}
		m := containerDir.FindStringSubmatch(parts[i+1])
		if m == nil {
			return containerPath{}, false // the pod's own cgroup, or somebody else's in it, as libvirt's when born there
		}
		return containerPath{pod: pod, container: m[1] + m[2], root: strings.Join(parts[:i+2], "/")}, true
	}
	return containerPath{}, false
}

// podUIDOf returns the UID of the pod whose cgroup the path is, by its last part and those before it.
func podUIDOf(parts []string) (string, bool) {
	last := len(parts) - 1
	if m := podSlice.FindStringSubmatch(parts[last]); m != nil {
		return strings.ReplaceAll(m[2], "_", "-"), true
	}
	m := podDir.FindStringSubmatch(parts[last])
	if m == nil {
		return "", false
	}
	parent := last - 1
	if slices.Contains([]string{"burstable", "besteffort"}, parts[parent]) {
		parent--
	}
	if parent < 0 || parts[parent] != "kubepods" {
		return "", false
	}
	return m[1], true
}
