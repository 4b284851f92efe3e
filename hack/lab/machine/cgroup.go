package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	cgroupRoot = "/sys/fs/cgroup"
	// cgroupParent holds every machine's cgroup, in each hierarchy.
	cgroupParent = "berth-lab"
)

// hierarchy is one mounted cgroup tree.
type hierarchy struct {
	path    string // where it is mounted
	fstype  string // cgroup or cgroup2
	options string // controllers that it was mounted with, v1 only
}

// hierarchies that are mounted here. Version 1 has one for each controller.
func hierarchies() ([]hierarchy, error) {
	raw, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	all := parseHierarchies(string(raw))
	if len(all) == 0 {
		return nil, fmt.Errorf("no cgroup hierarchy is mounted below %s", cgroupRoot)
	}
	return all, nil
}

func parseHierarchies(mounts string) []hierarchy {
	var all []hierarchy
	for line := range strings.Lines(mounts) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[2], "cgroup") || !strings.HasPrefix(f[1], cgroupRoot) {
			continue
		}
		h := hierarchy{path: f[1], fstype: f[2]}
		if h.fstype == "cgroup" {
			h.options = controllers(f[3])
		}
		all = append(all, h)
	}
	return all
}

// controllers drops from mount options what mount(2) takes as flags.
func controllers(options string) string {
	var keep []string
	for o := range strings.SplitSeq(options, ",") {
		switch {
		case o == "rw", o == "nosuid", o == "nodev", o == "noexec", o == "relatime", o == "noatime":
		case strings.HasPrefix(o, "release_agent="), o == "clone_children", o == "xattr":
		default:
			keep = append(keep, o)
		}
	}
	return strings.Join(keep, ",")
}

// joinCgroups makes the machine's cgroup in every hierarchy and puts a process in.
func joinCgroups(name string, pid int) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		dir := h.path
		for _, part := range []string{cgroupParent, name} {
			if h.fstype == "cgroup2" {
				delegate(dir)
			}
			parent := dir
			dir = filepath.Join(dir, part)
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("making a cgroup: %w", err)
			}
			// An empty cpuset takes no process.
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				if raw, err := os.ReadFile(filepath.Join(parent, file)); err == nil && h.fstype == "cgroup" {
					if err := os.WriteFile(filepath.Join(dir, file), raw, 0o644); err != nil {
						return fmt.Errorf("giving a cgroup its processors: %w", err)
					}
				}
			}
		}
		if h.fstype == "cgroup2" {
			// A running machine keeps its own processes in here, see mountCgroups.
			if scope := filepath.Join(dir, "init"); exists(scope) {
				dir = scope
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Appendln(nil, pid), 0o644); err != nil {
			return fmt.Errorf("moving process %d into %s: %w", pid, dir, err)
		}
	}
	return nil
}

// delegate hands every controller of a version 2 cgroup to its children, as
// far as it may: the kernel refuses where processes live or a controller is missing.
func delegate(dir string) {
	raw, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	for c := range strings.FieldsSeq(string(raw)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// mountCgroups shows a machine its own part of each hierarchy as the whole.
// It must run in the machine's cgroup namespace.
func mountCgroups(all []hierarchy) error {
	if all[0].path == cgroupRoot {
		if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", 0, ""); err != nil {
			return fmt.Errorf("mounting %s: %w", cgroupRoot, err)
		}
		// Controllers are handed on only by a cgroup without processes.
		scope := filepath.Join(cgroupRoot, "init")
		if err := os.Mkdir(scope, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		if err := os.WriteFile(filepath.Join(scope, "cgroup.procs"), []byte("1"), 0o644); err != nil {
			return err
		}
		delegate(cgroupRoot)
		return nil
	}
	if err := unix.Mount("tmpfs", cgroupRoot, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting %s: %w", cgroupRoot, err)
	}
	for _, h := range all {
		if err := os.MkdirAll(h.path, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(h.fstype, h.path, h.fstype, 0, h.options); err != nil {
			return fmt.Errorf("mounting %s with %q: %w", h.path, h.options, err)
		}
	}
	return nil
}

// removeCgroups removes a machine's cgroups, and those above when it was the
// last. The processes are dead; the kernel may need a moment to see it.
func removeCgroups(name string) error {
	all, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range all {
		top := filepath.Join(h.path, cgroupParent)
		for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			err = removeTree(filepath.Join(top, name))
			if err == nil || time.Now().After(deadline) {
				break
			}
		}
		if err != nil {
			return err
		}
		if err := syscall.Rmdir(top); err != nil && err != syscall.ENOENT && err != syscall.EBUSY && err != syscall.ENOTEMPTY {
			return err
		}
	}
	return nil
}

// removeTree removes a cgroup with those below it; their files cannot be removed.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return os.Remove(dir)
}
