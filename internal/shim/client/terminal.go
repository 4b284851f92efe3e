package client

import (
	"os"
	"os/signal"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
	"github.com/berth-dev/berth/internal/shim/console"
)

// sizeTimeout bounds the wait for a terminal's size: a runtime tells it just after the start.
const sizeTimeout = 200 * time.Millisecond

// terminal is standard input where that is one, and nil where not.
type terminal struct {
	before  *unix.Termios
	signals chan os.Signal
}

// openTerminal makes it raw: the guest's own terminal is the one that echoes, and makes signals of keys.
func openTerminal(wanted bool) *terminal {
	if !wanted {
		return nil
	}
	before, err := console.MakeRaw(os.Stdin)
	if err != nil || before == nil {
		return nil
	}
	t := &terminal{before: before, signals: make(chan os.Signal, 1)}
	signal.Notify(t.signals, unix.SIGWINCH, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	return t
}

func (t *terminal) restore() {
	if t != nil {
		_ = unix.IoctlSetTermios(0, unix.TCSETS, t.before)
	}
}

// size waits a little for one that is not 0.
func (t *terminal) size() guestlink.Size {
	for late := time.Now().Add(sizeTimeout); ; time.Sleep(sizeTimeout / 20) {
		if size := windowSize(); size.Rows > 0 && size.Columns > 0 || !time.Now().Before(late) {
			return size
		}
	}
}

// follow calls resized with each size that comes. At a signal that ends the process it calls restore.
func (t *terminal) follow(resized func(guestlink.Size), restore func()) {
	if t == nil {
		return
	}
	resized(windowSize()) // it may have changed since
	for s := range t.signals {
		if s != unix.SIGWINCH {
			restore()
			os.Exit(CodeLost)
		}
		resized(windowSize())
	}
}

func windowSize() (size guestlink.Size) {
	if w, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
		size = guestlink.Size{Rows: w.Row, Columns: w.Col}
	}
	return size
}

func terminalType() string {
	if t := os.Getenv("TERM"); t != "" {
		return t
	}
	return "xterm"
}
