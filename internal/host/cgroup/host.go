package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Host knows where the machine's cgroup hierarchies are mounted.
type Host struct {
	// dirs has the directory of each hierarchy: by controller or "name=…" on v1, by "" for v2.
	dirs map[string]string
}

// New finds the hierarchies among the caller's mounts.
func New() (*Host, error) {
	const file = "/proc/self/mountinfo"
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading mounts: %w", err)
	}
	h := &Host{dirs: parseMounts(data)}
	if len(h.dirs) == 0 {
		return nil, fmt.Errorf("%s has no writable mount of the host's cgroups", file)
	}
	return h, nil
}

// Unified tells whether the machine uses cgroup v2 alone: no controller of ours is on v1.
func (h *Host) Unified() bool {
	_, v1 := h.dirs["memory"]
	return !v1
}

// parseMounts reads proc_pid_mountinfo(5). It takes whole hierarchies only: the
// one that a runtime mounts into a container begins at the container's own cgroup.
func parseMounts(data []byte) map[string]string {
	dirs := map[string]string{}
	for line := range bytes.Lines(data) {
		before, after, ok := strings.Cut(string(line), " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 6 || len(super) < 3 || mount[3] != "/" ||
			!slices.Contains(strings.Split(mount[5], ","), "rw") {
			continue
		}
		switch dir := unescape.Replace(mount[4]); super[0] {
		case "cgroup2":
			dirs[unified] = dir
		case "cgroup":
			for option := range strings.SplitSeq(super[2], ",") {
				dirs[option] = dir // options that are no controllers never appear in /proc/PID/cgroup
			}
		}
	}
	return dirs
}

var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

// dir returns the directory of a path in a hierarchy, which /proc/PID/cgroup names.
func (h *Host) dir(hierarchy, p string) (string, error) {
	first, _, _ := strings.Cut(hierarchy, ",")
	root, ok := h.dirs[first]
	if !ok {
		return "", fmt.Errorf("cgroup hierarchy %q is not mounted", hierarchy)
	}
	if strings.HasPrefix(p, "/..") {
		return "", fmt.Errorf("cgroup %s is outside of our namespace", p)
	}
	return filepath.Join(root, p), nil
}

// Of is the function Of.
func (h *Host) Of(pid int) (Group, error) { return Of(pid) }

// Partition returns the pod's slice as libvirt's <partition> wants it, or "" if kubelet has not made it yet, or does
// not use the systemd driver. Slices have the prefix that the caller's own pod has, if it runs in one.
func (h *Host) Partition(podUID string) (string, error) {
	own, err := Of(os.Getpid())
	if err != nil {
		return "", err
	}
	for _, hierarchy := range []string{unified, "name=systemd"} {
		if h.dirs[hierarchy] == "" {
			continue
		}
		stem := slicePrefix(own.paths[hierarchy])
		for _, qos := range []string{"-burstable", "", "-besteffort"} {
			slice := stem + qos + "-pod" + strings.ReplaceAll(podUID, "-", "_")
			dir, err := h.dir(hierarchy, slicePath(slice))
			if err != nil {
				return "", err
			}
			if _, err := os.Stat(dir); err == nil {
				return "/" + strings.ReplaceAll(slice, "-", "/"), nil
			} else if !errors.Is(err, os.ErrNotExist) {
				return "", fmt.Errorf("looking for slice of pod %s: %w", podUID, err)
			}
		}
	}
	return "", nil
}

var podSlice = regexp.MustCompile(`/((?:[^/]+-)?kubepods)(?:-burstable|-besteffort)?-pod[0-9a-zA-Z_]{1,64}\.slice(?:/|$)`)

// slicePrefix returns what the names of kubelet's slices begin with.
func slicePrefix(own string) string {
	if m := podSlice.FindStringSubmatch(own); m != nil {
		return m[1]
	}
	return "kubepods"
}

// slicePath returns where systemd keeps a slice: "a-b" is /a.slice/a-b.slice. See systemd.slice(5).
func slicePath(name string) string {
	parts := strings.Split(name, "-")
	p := "/"
	for i := range parts {
		p = path.Join(p, strings.Join(parts[:i+1], "-")+".slice")
	}
	return p
}
