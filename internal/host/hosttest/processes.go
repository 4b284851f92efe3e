package hosttest

import (
	"fmt"
	"io/fs"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
)

// Processes are the host's, as a process.Table sees them.
type Processes struct{ h *Host }

// Find is as process.Table's.
func (t *Processes) Find(uuid string) ([]process.Process, error) {
	t.h.mu.Lock()
	defer t.h.mu.Unlock()
	var found []process.Process
	for _, p := range t.h.qemus[uuid] {
		found = append(found, process.Process{PID: p.pid, UID: p.qemu.user})
	}
	return found, nil
}

// PIDsByUUID is as process.Table's.
func (t *Processes) PIDsByUUID() (map[string][]int, error) {
	t.h.mu.Lock()
	defer t.h.mu.Unlock()
	all := make(map[string][]int, len(t.h.qemus))
	for uuid, qemus := range t.h.qemus {
		for _, p := range qemus {
			all[uuid] = append(all[uuid], p.pid)
		}
	}
	return all, nil
}

// Terminate is as process.Table's. It takes no time, and libvirt does not notice.
func (t *Processes) Terminate(p process.Process, _ time.Duration) error {
	t.signal(p, libvirtd.CauseSignalled)
	return nil
}

// Kill is as process.Table's. libvirt does not notice.
func (t *Processes) Kill(p process.Process) error {
	t.signal(p, libvirtd.CauseFailed)
	return nil
}

func (t *Processes) signal(p process.Process, cause libvirtd.Cause) {
	t.h.mu.Lock()
	defer t.h.unlock()
	if found := t.h.processes[p.PID]; found != nil {
		t.h.end(found, cause)
	}
}

// Watch is as process.Table's, but that ended is called on the goroutine of whoever ends the process, before what
// ends it returns.
func (t *Processes) Watch(pid int, ended func()) (exists bool, err error) {
	t.h.mu.Lock()
	defer t.h.mu.Unlock()
	p := t.h.processes[pid]
	if p != nil {
		p.ended = append(p.ended, ended)
	}
	return p != nil, nil
}

// VhostThreads is as process.Table's: each QEMU has one.
func (t *Processes) VhostThreads(pid int) ([]int, error) {
	t.h.mu.Lock()
	defer t.h.mu.Unlock()
	if p := t.h.processes[pid]; p != nil && p.qemu != nil {
		return []int{p.qemu.helper.pid}, nil
	}
	return nil, nil
}

// CopyOOMScore is as process.Table's.
func (t *Processes) CopyOOMScore(from, to int) error {
	t.h.mu.Lock()
	defer t.h.mu.Unlock()
	for _, pid := range []int{from, to} {
		if t.h.processes[pid] == nil {
			return fmt.Errorf("reading oom_score_adj of process %d: %w", pid, fs.ErrNotExist)
		}
	}
	t.h.processes[to].oomScore = t.h.processes[from].oomScore
	return nil
}

// Cgroups are the host's, as a cgroup.Host sees them: all on v2, under kubelet's cgroupfs driver.
type Cgroups struct{ h *Host }

// Of is as cgroup.Of.
func (c *Cgroups) Of(pid int) (cgroup.Group, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	p := c.h.processes[pid]
	if p == nil {
		return cgroup.Group{}, fmt.Errorf("reading cgroups of process %d: %w", pid, cgroup.ErrNoProcess)
	}
	return p.group, nil
}

// Place is as cgroup.Host's.
func (c *Cgroups) Place(into cgroup.Group, pids ...int) error {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	to, err := c.h.containerOf(into)
	for _, pid := range pids {
		p := c.h.processes[pid]
		if err == nil && p == nil {
			err = cgroup.ErrNoProcess
		}
		if err != nil {
			return fault.NewTransient(v1alpha1.ReasonPlacementFailed, fmt.Errorf("moving process %d into %s: %w", pid, into, err))
		}
		if p.container != "" && p.container != to.id {
			c.h.breach("process %d was moved from container %s to %s", pid, p.container, to.id)
		}
		p.group, p.container = to.group, to.id
	}
	return err
}

// OOMKills is as cgroup.Host's.
func (c *Cgroups) OOMKills(g cgroup.Group) (uint64, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	in, err := c.h.containerOf(g)
	if err != nil {
		return 0, fmt.Errorf("reading memory of cgroup: %w", err)
	}
	return in.oomKills, nil
}

// Uncharged is as cgroup.Host's, of processes that take no memory.
func (c *Cgroups) Uncharged(g cgroup.Group, _ int) (uint64, error) {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	_, err := c.h.containerOf(g)
	return 0, err
}

// Partition is as cgroup.Host's without the systemd driver.
func (c *Cgroups) Partition(string) (string, error) { return "", nil }

// containerOf returns the container whose cgroup it is. One that has ended keeps its cgroup while processes are in it.
func (h *Host) containerOf(g cgroup.Group) (*container, error) {
	_, id, ok := g.Container()
	if !ok {
		return nil, fmt.Errorf("%s is no container's cgroup", g)
	}
	c := h.containers[id]
	if c != nil && c.process != nil {
		return c, nil
	}
	if c != nil {
		for _, p := range h.processes {
			if p.container == id {
				return c, nil
			}
		}
	}
	return nil, cgroup.ErrGone
}
