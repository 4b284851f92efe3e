package qga

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

const (
	// commandTimeout is how long a guest agent may take for one command. QEMU looks once a second whether somebody is at the
	// port, and the guest agent hears nothing before.
	commandTimeout = 5 * time.Second
	// maxStale is how much may come, in bytes, before a guest agent answers what it was asked.
	maxStale = 1 << 20
	// sentinel begins what answers a guest-sync-delimited, and has the guest agent forget half a command.
	sentinel = '\xff'
	// lockRetry is how often a port is tried that another conversation has.
	lockRetry = 50 * time.Millisecond
)

// Port is the host's end of a guest agent's port: a pseudo-terminal of QEMU's that nobody else reads.
type Port struct {
	tty *os.File
	in  *bufio.Reader
}

// OpenPort opens the port of the QEMU with that process ID, and waits while another conversation has it. pts is the
// number of the pseudo-terminal, as libvirt tells it. It is opened by QEMU's own descriptor (TIOCGPTPEER of
// ioctl_tty(2)): what is under its name in one container is not what is there in another.
func OpenPort(ctx context.Context, pid int, pts int) (*Port, error) {
	tty, err := openPeer(pid, pts)
	if err != nil {
		return nil, notConnected(fmt.Errorf("opening pseudo-terminal %d of QEMU's process %d: %w", pts, pid, err))
	}
	if err := lock(ctx, tty); err != nil {
		_ = unix.Close(tty)
		return nil, notConnected(fmt.Errorf("waiting for another conversation with the guest agent: %w", err))
	}
	file := os.NewFile(uintptr(tty), "guest agent")
	return &Port{tty: file, in: bufio.NewReader(file)}, nil
}

// openPeer finds the terminal among QEMU's descriptors, and opens its other end.
func openPeer(pid, pts int) (tty int, err error) {
	qemu, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(qemu)
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	descriptors, err := os.ReadDir(dir)
	if err != nil {
		return -1, err
	}
	for _, d := range descriptors {
		n, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		if name, err := os.Readlink(dir + d.Name()); err != nil || !strings.HasSuffix(name, "/ptmx") {
			continue
		}
		if tty, err := peerOf(qemu, n, pts); tty >= 0 || err != nil {
			return tty, err
		}
	}
	return -1, errors.New("QEMU does not have it open")
}

// peerOf opens the other end of a descriptor of QEMU's, if that is the terminal; -1 if it is another one.
func peerOf(qemu, descriptor, pts int) (tty int, err error) {
	master, err := unix.PidfdGetfd(qemu, descriptor, 0)
	if err != nil {
		return -1, fmt.Errorf("pidfd_getfd: %w", err)
	}
	defer unix.Close(master)
	if number, err := unix.IoctlGetInt(master, unix.TIOCGPTN); err != nil || number != pts {
		return -1, nil // it is no terminal at all
	}
	const flags = unix.O_RDWR | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_CLOEXEC
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, flags)
	if errno != 0 {
		return -1, fmt.Errorf("TIOCGPTPEER: %w", errno)
	}
	return int(peer), nil
}

// lock keeps two conversations apart, of this agent and of one that is about to end.
func lock(ctx context.Context, tty int) error {
	retry := time.Tick(lockRetry)
	for {
		err := unix.Flock(tty, unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-retry:
		}
	}
}

// Close ends the conversation.
func (p *Port) Close() error { return p.tty.Close() }

// AgentCommand sends a command and returns the reply, both JSON, of the guest whose port it is.
func (p *Port) AgentCommand(ctx context.Context, command string) (string, error) {
	if err := p.begin(ctx, command); err != nil {
		return "", notConnected(err)
	}
	reply, err := p.line(maxReply)
	return string(reply), notConnected(fault.Doing(err, "reading the reply"))
}

// PowerDown asks the guest to power itself off. A guest agent that does so answers nothing.
func (p *Port) PowerDown(ctx context.Context) error {
	err := p.begin(ctx, `{"execute":"guest-shutdown","arguments":{"mode":"powerdown"}}`)
	return notConnected(fault.Doing(err, "asking for guest-shutdown"))
}

// begin sends a command behind a synchronisation: what comes next is the reply to it, whatever was asked before.
func (p *Port) begin(ctx context.Context, command string) error {
	deadline := time.Now().Add(commandTimeout)
	if end, ok := ctx.Deadline(); ok && end.Before(deadline) {
		deadline = end
	}
	if err := p.tty.SetDeadline(deadline); err != nil {
		return err
	}
	id := rand.Uint32() //nolint:gosec // to tell two conversations apart
	if _, err := fmt.Fprintf(p.tty, "\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id); err != nil {
		return fmt.Errorf("synchronising: %w", err)
	}
	for left := maxStale; ; {
		line, err := p.line(left)
		if err != nil {
			return fmt.Errorf("synchronising: %w", err)
		}
		left -= len(line) + 1
		var answer struct{ Return json.Number }
		line = line[bytes.LastIndexByte(line, sentinel)+1:]
		if err := json.Unmarshal(line, &answer); err == nil && answer.Return.String() == strconv.FormatUint(uint64(id), 10) {
			_, err := io.WriteString(p.tty, command+"\n")
			return err
		}
	}
}

var errTooLong = errors.New("the guest says more than it may")

// line reads up to the end of a line, and no more than limit bytes.
func (p *Port) line(limit int) (line []byte, err error) {
	for {
		part, err := p.in.ReadSlice('\n')
		if line = append(line, part...); len(line) > limit {
			return nil, errTooLong
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return bytes.TrimRight(line, "\r\n"), err
		}
	}
}
