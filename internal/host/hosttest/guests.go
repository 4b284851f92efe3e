package hosttest

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// QEMU is a QEMU that lives, whatever libvirt knows of it.
type QEMU struct {
	PID int
	// State and Pause are of its vCPUs.
	State libvirtd.State
	Pause libvirtd.Pause
	// Pod and Container, an ID, tell whose cgroup it is in; both are "" outside of all containers.
	Pod, Container string
	OOMScore       int
	// ShutdownAsked: its guest was asked to power off.
	ShutdownAsked bool
	// NMIs are how many it got.
	NMIs int
}

// QEMUs are those of a guest that live, oldest first.
func (h *Host) QEMUs(uuid string) []QEMU {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]QEMU, 0, len(h.qemus[uuid]))
	for _, p := range h.qemus[uuid] {
		q := QEMU{
			PID: p.pid, State: p.qemu.state, Pause: p.qemu.pause, OOMScore: p.oomScore, ShutdownAsked: p.qemu.shutdownAsked, NMIs: p.qemu.nmis,
			Container: p.container,
		}
		if c := h.containers[p.container]; c != nil {
			q.Pod = c.pod
		}
		all = append(all, q)
	}
	return all
}

// running returns the domain of a guest that runs, nil if there is none.
func (h *Host) running(uuid string) *domain {
	d := h.domains[uuid]
	if d == nil || d.process.qemu.cause != "" || d.process.qemu.state != libvirtd.Running {
		return nil
	}
	return d
}

// PowerOff has a guest that runs power itself off, of which libvirt takes note.
func (h *Host) PowerOff(uuid string) bool {
	h.mu.Lock()
	defer h.unlock()
	d := h.running(uuid)
	if d == nil {
		return false
	}
	h.end(d.process, libvirtd.CausePoweredOff)
	h.forget(uuid, libvirtd.CausePoweredOff)
	return true
}

// Panic has the kernel of a guest that runs panic: its QEMU stays, as a corpse.
func (h *Host) Panic(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.running(uuid)
	if d == nil {
		return false
	}
	d.process.qemu.state = libvirtd.Crashed
	h.stops[uuid] = libvirtd.Exit{Cause: libvirtd.CausePanicked, Time: time.Now()}
	return true
}

// PauseOnIOError has QEMU halt a guest that runs, since its disk is full or fails.
func (h *Host) PauseOnIOError(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.running(uuid)
	if d == nil {
		return false
	}
	d.process.qemu.state, d.process.qemu.pause = libvirtd.Paused, libvirtd.PausedOnIOError
	return true
}

// KillQEMU kills every QEMU of a guest. libvirt does not notice before NoticeExit.
func (h *Host) KillQEMU(uuid string) bool { return h.endQEMU(uuid, libvirtd.CauseFailed) }

// TerminateQEMU ends every QEMU of a guest as an agent does that is killed right after, so that libvirt's log alone tells.
func (h *Host) TerminateQEMU(uuid string) bool { return h.endQEMU(uuid, libvirtd.CauseTerminated) }

func (h *Host) endQEMU(uuid string, cause libvirtd.Cause) bool {
	h.mu.Lock()
	defer h.unlock()
	killed := false
	for len(h.qemus[uuid]) > 0 {
		h.end(h.qemus[uuid][0], cause)
		killed = true
	}
	return killed
}

// OOMKill has the kernel kill every QEMU of a guest that is in a container, which is over its memory limit.
func (h *Host) OOMKill(uuid string) bool {
	h.mu.Lock()
	defer h.unlock()
	killed := false
	for _, p := range append([]*proc(nil), h.qemus[uuid]...) {
		if c := h.containers[p.container]; c != nil {
			h.end(p, libvirtd.CauseFailed)
			c.oomKills++
			killed = true
		}
	}
	return killed
}

// Reset has a guest reset itself, at a time.
func (h *Host) Reset(uuid string, at time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.running(uuid)
	if d == nil {
		return false
	}
	d.reset(at)
	return true
}

// NoticeExit has libvirt notice that the QEMU of a domain has ended.
func (h *Host) NoticeExit(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.domains[uuid]
	if d == nil || d.process.qemu.cause == "" {
		return false
	}
	h.forget(uuid, d.process.qemu.cause)
	return true
}

// ForgetDomain has libvirt lose its record of a domain, whose QEMU lives on.
func (h *Host) ForgetDomain(uuid string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.domains[uuid] == nil {
		return false
	}
	delete(h.domains, uuid)
	return true
}

// AnswerOnce has libvirt answer the next question about one domain with d, whatever is true.
func (h *Host) AnswerOnce(uuid string, d libvirtd.Domain) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answers[uuid] = d
}

// SetLibvirtDown has libvirtd answer nobody any more, or answer again. QEMUs run on.
func (h *Host) SetLibvirtDown(down bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.libvirtDown = down
}

// ConnectAgent has the guest agent of a guest that runs open its channel. From then on answer answers for it.
func (h *Host) ConnectAgent(uuid string, answer func(command string) (string, error)) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	d := h.running(uuid)
	if d == nil {
		return false
	}
	if d.agent == nil {
		d.xml = strings.Replace(d.xml, agentChannel, agentChannel+agentConnected, 1)
	}
	d.agent = answer
	return true
}

// DisconnectAgent has it close its channel.
func (h *Host) DisconnectAgent(uuid string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d := h.running(uuid); d != nil {
		d.agent, d.xml = nil, strings.Replace(d.xml, agentChannel+agentConnected, agentChannel, 1)
	}
}

// OpenGuestAgent is as qga.OpenPort. The number of each guest's pseudo-terminal is its domain's.
func (h *Host) OpenGuestAgent(pid, pts int) (*GuestAgent, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.domains {
		if d.process.pid == pid && int(d.id) == pts {
			return &GuestAgent{h, d}, nil
		}
	}
	return nil, noAgent(fmt.Errorf("process %d does not have pseudo-terminal %d", pid, pts))
}

// GuestAgent is a conversation with the guest agent of ConnectAgent.
type GuestAgent struct {
	h *Host
	d *domain
}

// AgentCommand is as qga.Port's.
func (a *GuestAgent) AgentCommand(_ context.Context, command string) (string, error) {
	a.h.mu.Lock()
	answer := a.d.agent
	a.h.mu.Unlock()
	if answer == nil {
		return "", noAgent(errors.New("nobody answers"))
	}
	return answer(command)
}

// PowerDown is as qga.Port's. What the guest makes of it is the test's to say.
func (a *GuestAgent) PowerDown(context.Context) error {
	a.h.mu.Lock()
	defer a.h.mu.Unlock()
	if a.d.agent == nil {
		return noAgent(errors.New("nobody answers"))
	}
	a.d.process.qemu.shutdownAsked = true
	return nil
}

// Close is as qga.Port's.
func (a *GuestAgent) Close() error { return nil }

func noAgent(err error) error { return fault.NewTransient(v1alpha1.ReasonGuestAgentNotConnected, err) }

// As libvirt's XML has it.
const (
	agentChannel   = `name="org.qemu.guest_agent.0"`
	agentConnected = ` state="connected"`
)
