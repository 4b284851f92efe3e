package process

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Handle holds a process by its pidfd: it means that process and no other, also after its end.
type Handle struct {
	pid, fd int
	file    *os.File // of fd, for the runtime's poller
}

// Open opens a pidfd of a process. The caller proves afterwards that it is the one it meant.
func Open(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	return &Handle{pid: pid, fd: fd, file: os.NewFile(uintptr(fd), "pidfd")}, nil
}

// PID is the process's number. It means this process only while Alive.
func (h *Handle) PID() int { return h.pid }

// FD is the pidfd. It is good until Close.
func (h *Handle) FD() int { return h.fd }

// Alive tells whether the process has not ended. A zombie has; and nothing is known to be alive after Close.
func (h *Handle) Alive() bool {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return false
	}
	var is bool
	// Control holds the descriptor, so that its number cannot mean another file by now.
	err = conn.Control(func(fd uintptr) { is = alive(int(fd)) })
	return err == nil && is
}

func alive(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) //nolint:gosec // a descriptor
	return err == nil && n == 0
}

// Wait returns nil when the process has ended, or an error after Close. It keeps no thread.
func (h *Handle) Wait() error {
	conn, err := h.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("watching process %d: %w", h.pid, err)
	}
	if err := conn.Read(func(fd uintptr) bool { return !alive(int(fd)) }); err != nil {
		return fmt.Errorf("watching process %d: %w", h.pid, err)
	}
	return nil
}

// Close lets go of the process.
func (h *Handle) Close() error { return h.file.Close() }

// Kill ends the process at once. That it has ended already is no error.
func (p Process) Kill() error {
	h, err := p.signal(unix.SIGKILL)
	if h != nil {
		_ = h.Close()
	}
	return err
}

// Terminate asks the process to end and waits until it has, for so long at most. That it has ended already is no error.
func (p Process) Terminate(within time.Duration) error {
	h, err := p.signal(unix.SIGTERM)
	if h == nil {
		return err
	}
	defer h.Close()
	if err := h.file.SetReadDeadline(time.Now().Add(within)); err != nil {
		return fmt.Errorf("watching process %d: %w", p.PID, err)
	}
	return h.Wait()
}

// signal sends a signal and returns a hold of the process, nil if there is none any more.
func (p Process) signal(s unix.Signal) (*Handle, error) {
	h, err := Open(p.PID)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if info, err := os.Stat("/proc/" + strconv.Itoa(p.PID)); err != nil || ownerOf(info) != p.UID {
		return nil, h.Close() // another process has its number now
	}
	if err := unix.PidfdSendSignal(h.FD(), s, nil, 0); err != nil {
		_ = h.Close()
		if errors.Is(err, unix.ESRCH) {
			return nil, nil
		}
		return nil, fmt.Errorf("ending process %d: %w", p.PID, err)
	}
	return h, nil
}

// OOMScore reads a process's oom_score_adj, -1000 to 1000.
func OOMScore(pid int) (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid))
	if err != nil {
		return 0, fmt.Errorf("reading oom_score_adj of process %d: %w", pid, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

// SetOOMScore writes it. Lowering takes CAP_SYS_RESOURCE; without that it stays as it is, and that is no error.
func SetOOMScore(pid, score int) error {
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0)
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("writing oom_score_adj of process %d: %w", pid, err)
	}
	return nil
}
