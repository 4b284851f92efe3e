package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// OOMKills returns how many processes of the container the kernel has killed
// because the container was over its memory limit, or the machine out of
// memory. It only grows while the container lives; ErrGone after.
func (h *Host) OOMKills(g Group) (uint64, error) {
	dir, v2, err := h.memory(g)
	if err != nil {
		return 0, err
	}
	file := "memory.oom_control"
	if v2 {
		file = "memory.events" // counts those below, too
	}
	data, err := read(filepath.Join(dir, file))
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(data)
	for i := 0; i+1 < len(fields); i += 2 {
		if fields[i] == "oom_kill" {
			return strconv.ParseUint(fields[i+1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s in %s does not count kills", file, dir)
}

// memory returns the container's directory in the hierarchy that has the memory controller.
func (h *Host) memory(g Group) (dir string, v2 bool, err error) {
	for hierarchy, p := range g.paths {
		where, named := find(p)
		if !named {
			continue
		}
		isMemory := strings.Contains(","+hierarchy+",", ",memory,")
		_, elsewhere := h.dirs["memory"]
		if isMemory || hierarchy == unified && !elsewhere {
			dir, err := h.dir(hierarchy, where.root)
			return dir, !isMemory, err
		}
	}
	return "", false, fmt.Errorf("%s is no container's cgroup with a memory controller", g)
}

func read(file string) (string, error) {
	data, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		if _, err := os.Stat(filepath.Dir(file)); errors.Is(err, os.ErrNotExist) {
			return "", fmt.Errorf("reading %s: %w", file, ErrGone)
		}
	}
	if err != nil {
		return "", fmt.Errorf("reading memory of cgroup: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}
