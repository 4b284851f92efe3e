package hosttest

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/cgroup"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/internal/host/volume"
)

// OOMScore is the oom_score_adj that kubelet gives to every container here.
const OOMScore = 985

type pod struct {
	runtime.Pod
	containers []*container     // oldest first
	volumes    map[string]mount // by path
}

type container struct {
	id, pod, name string
	state         runtime.State
	process       *proc // nil unless it runs
	group         cgroup.Group
	oomKills      uint64
	files         map[string][]byte
}

// Runtime is the host's container runtime, as a runtime.Runtime sees it.
type Runtime struct{ h *Host }

func (r *Runtime) reach(ctx context.Context) error {
	err := ctx.Err()
	if err == nil && r.h.runtimeDown {
		err = errors.New("asking container runtime: connection refused")
	}
	if err != nil {
		return fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, err)
	}
	return nil
}

// Container is as runtime.Runtime's.
func (r *Runtime) Container(ctx context.Context, podUID, name string) (c runtime.Container, found bool, err error) {
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	if err := r.reach(ctx); err != nil {
		return c, false, err
	}
	newest := r.h.newest(podUID, name)
	if newest == nil {
		return c, false, nil
	}
	c = runtime.Container{ID: newest.id, State: newest.state}
	if newest.process != nil {
		c.PID = newest.process.pid
	}
	return c, true, nil
}

// Pod is as runtime.Runtime's.
func (r *Runtime) Pod(ctx context.Context, podUID string) (p runtime.Pod, found bool, err error) {
	r.h.mu.Lock()
	defer r.h.mu.Unlock()
	if err := r.reach(ctx); err != nil {
		return p, false, err
	}
	if had := r.h.pods[podUID]; had != nil {
		return had.Pod, true, nil
	}
	return p, false, nil
}

func (h *Host) newest(podUID, name string) (newest *container) {
	if p := h.pods[podUID]; p != nil {
		for _, c := range p.containers {
			if c.name == name {
				newest = c
			}
		}
	}
	return newest
}

// SetRuntimeDown has the container runtime answer nobody any more, or answer again. Containers run on.
func (h *Host) SetRuntimeDown(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.runtimeDown = down
}

// AddPod makes a pod, without containers, or changes what runs it.
func (h *Host) AddPod(uid string, p runtime.Pod) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.pod(uid).Pod = p
}

// pod returns a pod, made if there is none, and run by runc.
func (h *Host) pod(uid string) *pod {
	if h.pods[uid] == nil {
		h.pods[uid] = &pod{Pod: runtime.Pod{Type: "io.containerd.runc.v2"}}
	}
	return h.pods[uid]
}

// CreateContainer makes a container that does not run yet, and its pod if there is none, and returns its ID.
func (h *Host) CreateContainer(podUID, name string) (id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.createContainer(podUID, name).id
}

func (h *Host) createContainer(podUID, name string) *container {
	h.lastContainer++
	id := fmt.Sprintf("%064x", h.lastContainer)
	c := &container{
		id: id, pod: podUID, name: name, state: runtime.Created, group: mustParse("0::/kubepods/pod" + podUID + "/" + id),
	}
	p := h.pod(podUID)
	p.containers, h.containers[id] = append(p.containers, c), c
	return c
}

// StartContainer starts the pod's newest container of that name, or a new one unless that has only been created. It
// returns its ID and its first process.
func (h *Host) StartContainer(podUID, name string) (id string, pid int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.newest(podUID, name)
	if c == nil || c.state != runtime.Created {
		c = h.createContainer(podUID, name)
	}
	c.state, c.process = runtime.Running, h.newProcess(c.group, c.id)
	c.process.oomScore = OOMScore
	return c.id, c.process.pid
}

// EndContainer ends a container's first process. Other processes stay in its cgroup, unless KillCgroup ends them: that
// depends on the runtime.
func (h *Host) EndContainer(id string) bool {
	h.mu.Lock()
	defer h.unlock()
	c := h.containers[id]
	if c == nil || c.process == nil {
		return false
	}
	h.end(c.process, "")
	c.state, c.process = runtime.Exited, nil
	return true
}

// KillCgroup kills all processes that have stayed in the cgroup of a container that has ended.
func (h *Host) KillCgroup(id string) bool {
	h.mu.Lock()
	defer h.unlock()
	c := h.containers[id]
	if c == nil || c.process != nil {
		return false
	}
	killed := false
	for _, p := range h.processes {
		if p.container == id {
			h.end(p, libvirtd.CauseFailed)
			killed = true
		}
	}
	return killed
}

// RemovePod ends a pod's containers and has the runtime forget them.
func (h *Host) RemovePod(uid string) bool {
	h.mu.Lock()
	defer h.unlock()
	p := h.pods[uid]
	if p == nil {
		return false
	}
	for _, c := range p.containers {
		if c.process != nil {
			h.end(c.process, "")
			c.state, c.process = runtime.Exited, nil
		}
	}
	delete(h.pods, uid)
	return true
}

// WriteFile puts a file into a container, by its absolute path there.
func (h *Host) WriteFile(containerID, path string, content []byte) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.containers[containerID]
	if c.files == nil {
		c.files = map[string][]byte{}
	}
	c.files[path] = content
}

// ReadFile is as volume.ReadFile.
func (h *Host) ReadFile(pid int, path string, limit int64) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	p := h.processes[pid]
	if p == nil || p.container == "" {
		return nil, fmt.Errorf("opening the root of process %d: %w", pid, fs.ErrNotExist)
	}
	content, ok := h.containers[p.container].files[path]
	switch {
	case !ok:
		return nil, &os.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
	case int64(len(content)) > limit:
		return nil, fmt.Errorf("reading %s: %w", path, volume.ErrTooLarge)
	}
	return content, nil
}

// Container is a hold of one container, with the methods that a session with its shim has.
type Container struct {
	h *Host
	c *container
	p *proc
}

// Container returns a hold of the container with this ID, nil unless it runs.
func (h *Host) Container(id string) *Container {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.containers[id]
	if c == nil || c.process == nil {
		return nil
	}
	return &Container{h, c, c.process}
}

// ContainerID is its ID.
func (c *Container) ContainerID() string { return c.c.id }

// PID is its first process.
func (c *Container) PID() int { return c.p.pid }

// Alive tells whether that has not ended.
func (c *Container) Alive() bool {
	c.h.mu.Lock()
	defer c.h.mu.Unlock()
	return c.h.processes[c.p.pid] == c.p
}

// Cgroup is its cgroup.
func (c *Container) Cgroup() cgroup.Group { return c.c.group }

// NetworkNamespace opens its pod's network namespace, which only Network can use.
func (c *Container) NetworkNamespace() (*os.File, error) {
	if !c.Alive() {
		return nil, fault.NewTransient(v1alpha1.ReasonNetworkFailed, errors.New("the berth's container has ended"))
	}
	return newFile("/pods/" + c.c.pod)
}
