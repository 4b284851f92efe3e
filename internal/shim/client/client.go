package client

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
)

// maxAnswer is the size of the longest answer, in bytes.
const maxAnswer = 4 << 10

// Run has a request carried out, and returns the exit code: the command's, or one of its own, for which it says why on
// standard error.
func (r Request) Run() int {
	code, message := r.run()
	if message != "" {
		fmt.Fprintln(os.Stderr, "berth:", message)
	}
	return code
}

func (r Request) run() (code int, message string) {
	conn, err := dial()
	if err != nil {
		return CodeRefused, err.Error()
	}
	var stdio []int
	if r.Kind <= Liveness && !r.Detached {
		stdio = []int{0, 1, 2}
	}
	blocking := areBlocking(stdio)
	t := openTerminal(len(stdio) > 0)
	restore := func() {
		t.restore()
		blocking.restore()
	}
	defer restore()
	if r.Terminal = t != nil; r.Terminal {
		r.Size = t.size()
		r.Env = append([]string{"TERM=" + terminalType()}, r.Env...)
	}
	packet, err := r.encode()
	switch {
	case errors.Is(err, guestlink.ErrTooLong):
		return CodeRefused, "the command line is longer than 32 KiB: put what is long into a file, or into the command's input"
	case err != nil:
		return CodeUsage, err.Error()
	}
	var rights []byte
	if len(stdio) > 0 {
		rights = unix.UnixRights(stdio...)
	}
	if err := unix.Sendmsg(conn, packet, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return CodeRefused, "asking the shim: " + err.Error()
	}
	go t.follow(func(size guestlink.Size) { _ = unix.Send(conn, encodeSize(size), unix.MSG_NOSIGNAL) }, restore)
	answer, err := receive(conn)
	if err != nil || len(answer) < 2 {
		return CodeLost, "the shim has ended, and the guest with it"
	}
	return int(answer[1]), string(answer[2:])
}

// dial connects with the shim, and returns once the shim has looked at us.
func dial() (conn int, err error) {
	conn, err = unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("making a socket: %w", err)
	}
	if err := unix.Connect(conn, &unix.SockaddrUnix{Name: Address}); err != nil {
		return 0, fmt.Errorf("connecting with the shim: %w; the shim's log tells what is in its way", err)
	}
	// Of who listens, as the kernel took it down then. Of another container it is 0 or another number.
	peer, err := unix.GetsockoptUcred(conn, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return 0, fmt.Errorf("asking whose socket %s is: %w", Address, err)
	}
	if peer.Pid != 1 {
		return 0, fmt.Errorf("a process of another container of this pod listens on %s in the shim's place: end it", Address)
	}
	packet, err := receive(conn)
	switch {
	case err != nil:
		return 0, fmt.Errorf("connecting with the shim: %w", err)
	case len(packet) == 0:
		return 0, errors.New("the shim takes only processes of its own container, or is ending")
	case packet[0] != version:
		return 0, errors.New("the shim is of another version than this program")
	}
	return conn, nil
}

// receive reads a packet; nothing, at the end.
func receive(conn int) ([]byte, error) {
	packet := make([]byte, maxAnswer)
	for {
		n, _, err := unix.Recvfrom(conn, packet, 0)
		if !errors.Is(err, unix.EINTR) {
			return packet[:max(n, 0)], err
		}
	}
}

// blocking are descriptors that block. The shim makes them non-blocking, for everybody who has them.
type blocking []int

func areBlocking(fds []int) (list blocking) {
	for _, fd := range fds {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK == 0 {
			list = append(list, fd)
		}
	}
	return list
}

// restore is for the end, when the shim has closed its copies: a shell, say, may go on with the same terminal.
func (b blocking) restore() {
	for _, fd := range b {
		_ = unix.SetNonblock(fd, false)
	}
}
