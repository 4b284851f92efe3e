package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// ErrGone says that the cgroup no longer exists: its container has ended.
var ErrGone = errors.New("cgroup is gone")

// Place moves whole processes into a container's cgroup, in every hierarchy
// that names the container, and reads back where they are. Pids are those of
// processes or of kernel threads. It may be repeated. Errors match ErrGone and ErrNoProcess.
//
// Place into where the container's own process is: on v2 that is a cgroup that
// takes processes, even where the container has made cgroups further down.
func (h *Host) Place(into Group, pids ...int) error {
	return fault.NewTransient(v1alpha1.ReasonPlacementFailed, h.place(into, pids))
}

func (h *Host) place(into Group, pids []int) error {
	if _, _, ok := into.Container(); !ok {
		return fmt.Errorf("%s is not a container's cgroup", into)
	}
	for hierarchy := range into.containers() {
		dir, err := h.dir(hierarchy, into.paths[hierarchy])
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := move(dir, pid); err != nil {
				return fmt.Errorf("moving process %d into %s: %w", pid, dir, err)
			}
		}
	}
	for _, pid := range pids {
		inside, err := h.Contains(into, pid)
		if err != nil {
			return err
		}
		if !inside {
			return fmt.Errorf("process %d is not in %s after it was moved there", pid, into)
		}
	}
	return nil
}

func move(dir string, pid int) error {
	err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0) // one write, or the kernel takes parts for pids
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV):
		return ErrGone
	case errors.Is(err, unix.ESRCH):
		return ErrNoProcess
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("%w: the container has made cgroups of its own, this one takes no processes", err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w: its cpuset is empty", err)
	}
	return err
}

// Contains tells whether the process is in the container's cgroup, in every hierarchy that names the container.
func (h *Host) Contains(g Group, pid int) (bool, error) {
	at, err := Of(pid)
	if err != nil {
		return false, err
	}
	inside := false
	for hierarchy, where := range g.containers() {
		if q := at.paths[hierarchy]; q != where.root && !strings.HasPrefix(q, where.root+"/") {
			return false, nil
		}
		inside = true
	}
	return inside, nil
}
