package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// OOMKills returns how many processes of the container the kernel has killed because the container was over its memory
// limit, or the machine out of memory. It only grows while the container lives; ErrGone after.
func (h *Host) OOMKills(g Group) (uint64, error) {
	dir, v2, err := h.memory(g)
	if err != nil {
		return 0, err
	}
	file := "memory.oom_control"
	if v2 {
		file = "memory.events" // counts those below, too
	}
	return count(filepath.Join(dir, file), "oom_kill")
}

// Uncharged returns how much anonymous memory of the container's process is charged to another cgroup, in bytes: what a
// process takes stays charged to where it was taken (Documentation/admin-guide/cgroup-v2.rst, "Memory Ownership").
// It is only right while the process is by far the container's largest. ErrGone when either has ended.
func (h *Host) Uncharged(g Group, pid int) (uint64, error) {
	dir, v2, err := h.memory(g)
	if err != nil {
		return 0, err
	}
	word := "total_rss" // with those below, as v2 counts
	if v2 {
		word = "anon"
	}
	charged, err := count(filepath.Join(dir, "memory.stat"), word)
	if err != nil {
		return 0, err
	}
	taken, err := count("/proc/"+strconv.Itoa(pid)+"/status", "RssAnon:") // in KiB
	if err != nil || taken<<10 < charged {
		return 0, err
	}
	return taken<<10 - charged, nil
}

// count returns the number of the line that begins with the word, in a file of the kernel's.
func count(file, word string) (uint64, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		if _, e := os.Stat(filepath.Dir(file)); errors.Is(e, os.ErrNotExist) { // a cgroup's, or a process's
			err = ErrGone
		}
		return 0, fmt.Errorf("reading %s: %w", file, err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == word {
			return strconv.ParseUint(fields[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", file, word)
}

// memory returns the container's directory in the hierarchy that has the memory controller.
func (h *Host) memory(g Group) (dir string, v2 bool, err error) {
	for hierarchy, where := range g.containers() {
		isMemory := strings.Contains(","+hierarchy+",", ",memory,")
		if isMemory || hierarchy == unified && h.Unified() {
			dir, err := h.dir(hierarchy, where.root)
			return dir, !isMemory, err
		}
	}
	return "", false, fmt.Errorf("%s is not a container's cgroup with a memory controller", g)
}
