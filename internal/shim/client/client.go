package client

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
	"github.com/berth-dev/berth/internal/shim/console"
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
	var rights []byte
	var signals chan os.Signal // of a terminal
	restore := func() {}
	if r.Kind <= Liveness && !r.Detached {
		rights = unix.UnixRights(0, 1, 2)
		r.Terminal, restore = prepare()
	}
	defer restore()
	if r.Terminal {
		signals = make(chan os.Signal, 1)
		signal.Notify(signals, unix.SIGWINCH, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
		r.Size = awaitSize()
		r.Env = append([]string{"TERM=" + cmp.Or(os.Getenv("TERM"), "xterm")}, r.Env...)
	}
	packet, err := r.encode()
	switch {
	case errors.Is(err, guestlink.ErrTooLong):
		return CodeRefused, "the command line is longer than 32 KiB: put what is long into a file, or into the command's input"
	case err != nil:
		return CodeUsage, err.Error()
	}
	if err := unix.Sendmsg(conn, packet, rights, nil, unix.MSG_NOSIGNAL); err != nil {
		return CodeRefused, "asking the shim: " + err.Error()
	}
	if r.Terminal {
		go follow(signals, conn, restore)
	}
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

// sizeTimeout bounds the wait for a terminal's size: a runtime tells it just after the start.
const sizeTimeout = 200 * time.Millisecond

// prepare makes standard input raw if it is a terminal: the guest's own terminal is the one that echoes, and makes signals
// of keys. restore is for the end, when the shim, which makes what it is passed non-blocking for everybody who has it, has
// closed its copies: a shell, say, may go on with the same terminal.
func prepare() (isTerminal bool, restore func()) {
	var blocking []int
	for fd := range 3 {
		if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err == nil && flags&unix.O_NONBLOCK == 0 {
			blocking = append(blocking, fd)
		}
	}
	before, err := console.MakeRaw(os.Stdin)
	isTerminal = before != nil && err == nil
	return isTerminal, func() {
		if isTerminal {
			_ = unix.IoctlSetTermios(0, unix.TCSETS, before)
		}
		for _, fd := range blocking {
			_ = unix.SetNonblock(fd, false)
		}
	}
}

// awaitSize waits a little for a size of the terminal that is not 0.
func awaitSize() guestlink.Size {
	for late := time.Now().Add(sizeTimeout); ; time.Sleep(sizeTimeout / 20) {
		if size := windowSize(); size.Rows > 0 && size.Columns > 0 || !time.Now().Before(late) {
			return size
		}
	}
}

// follow tells the shim each size that the terminal comes to have. At a signal that ends the process it calls restore.
func follow(signals <-chan os.Signal, conn int, restore func()) {
	for s := os.Signal(unix.SIGWINCH); ; s = <-signals { // it may have changed since it was told
		if s != unix.SIGWINCH {
			restore()
			os.Exit(CodeLost)
		}
		_ = unix.Send(conn, encodeSize(windowSize()), unix.MSG_NOSIGNAL)
	}
}

func windowSize() (size guestlink.Size) {
	if w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
		size = guestlink.Size{Rows: w.Row, Columns: w.Col}
	}
	return size
}
