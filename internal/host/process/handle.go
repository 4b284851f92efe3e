package process

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// Handle holds a process by its pidfd: it means that process and no other, also after its end.
type Handle struct {
	pid, fd int
	file    *os.File // of fd, for the runtime's poller
	conn    syscall.RawConn
}

// Open opens a pidfd of a process. The caller proves afterwards that it is the one it meant.
func Open(pid int) (*Handle, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening process %d: %w", pid, err)
	}
	file := os.NewFile(uintptr(fd), "pidfd")
	conn, _ := file.SyscallConn() // there is a file
	return &Handle{pid: pid, fd: fd, file: file, conn: conn}, nil
}

// PID is the process's number. It means this process only while Alive.
func (h *Handle) PID() int { return h.pid }

// FD is the pidfd. It is good until Close.
func (h *Handle) FD() int { return h.fd }

// Alive tells whether the process has not ended. A zombie has; and nothing is known to be alive after Close.
func (h *Handle) Alive() bool {
	var is bool
	// Control holds the descriptor, so that its number cannot mean another file by now.
	err := h.conn.Control(func(fd uintptr) { is = alive(int(fd)) })
	return err == nil && is
}

func alive(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0) //nolint:gosec // a descriptor
	return err == nil && n == 0
}

// Wait returns nil when the process has ended, or an error after Close. It keeps no thread.
func (h *Handle) Wait() error {
	return fault.Doing(h.conn.Read(func(fd uintptr) bool { return !alive(int(fd)) }), "watching process %d", h.pid)
}

// Close lets go of the process.
func (h *Handle) Close() error { return h.file.Close() }

// Watch calls ended, once and on a goroutine of its own, when the process has ended. It tells whether there is one.
func (Table) Watch(pid int, ended func()) (exists bool, err error) {
	h, err := Open(pid)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	go func() {
		_ = h.Wait() // an error is its end, too: nobody else closes it
		_ = h.Close()
		ended()
	}()
	return true, nil
}

// Kill ends the process at once. That it has ended already is no error.
func (Table) Kill(p Process) error {
	return p.signal(unix.SIGKILL, 0)
}

// Terminate asks the process to end and waits until it has, for so long at most. That it has ended already is no error.
func (Table) Terminate(p Process, within time.Duration) error {
	return p.signal(unix.SIGTERM, within)
}

// signal sends the process a signal, unless it has ended, and waits for its end, for so long at most.
func (p Process) signal(s unix.Signal, within time.Duration) error {
	h, err := Open(p.PID)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return err
	}
	defer h.Close()
	if user, err := userOf(p.PID); err != nil || user != p.UID {
		return nil // another process has its number now
	}
	err = unix.PidfdSendSignal(h.FD(), s, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil || within == 0 {
		return fault.Doing(err, "ending process %d", p.PID)
	}
	if err := h.file.SetReadDeadline(time.Now().Add(within)); err != nil {
		return fmt.Errorf("watching process %d: %w", p.PID, err)
	}
	return h.Wait()
}

// CopyOOMScore gives a process the oom_score_adj of another. Lowering it takes CAP_SYS_RESOURCE; without that it stays as it is,
// and that is no error.
func (Table) CopyOOMScore(from, to int) error {
	score, err := readStart(from, "oom_score_adj", maxName)
	if err != nil {
		return err
	}
	if err := os.WriteFile(fileOf(to, "oom_score_adj"), score, 0); err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("writing oom_score_adj of process %d: %w", to, err)
	}
	return nil
}
