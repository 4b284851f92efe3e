package guesttools

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
)

// The ports' names on virtio-serial.
const (
	guestPort = "dev.berth.guest.0"
	exitPort  = "dev.berth.exit.0"

	exitTimeout = 10_000 // milliseconds

	// So many frames go to the host at once: each wait for it costs more than a frame's bytes.
	spliceFrames = 3
	spliceSize   = 256 << 10 // of a pipe: 64 pages, of which a frame takes 17 at most, with its header's
)

var errNoPort = errors.New("this machine has no such port: is it a guest of Berth's, with the module virtio_console?")

// openPort opens a port by its name.
func openPort(name string, flags int) (*os.File, error) {
	names, _ := filepath.Glob("/sys/class/virtio-ports/*/name") // fails only for a bad pattern
	for _, path := range names {
		if said, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(said)) != name {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(path))
		fd, err := unix.Open(device, flags|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.EBUSY) {
			err = errors.New("another program has it open")
		}
		if err != nil {
			return nil, fmt.Errorf("port %s: %s: %w", name, device, err)
		}
		return os.NewFile(uintptr(fd), name), nil
	}
	return nil, fmt.Errorf("port %s: %w", name, errNoPort)
}

// port is a virtio-serial port with blocking calls. While nobody is at its other end, reads return at once and writes
// wait: so reads begin behind the first write, and never spin.
type port struct {
	*os.File
	once   sync.Once
	begins chan struct{}

	spliced, framed [2]int // pipes, empty but during Splice: one frame's bytes, and frames
}

func newPort(file *os.File) (*port, error) {
	p := &port{File: file, begins: make(chan struct{})}
	err := cmp.Or(unix.Pipe2(p.spliced[:], unix.O_CLOEXEC), unix.Pipe2(p.framed[:], unix.O_CLOEXEC))
	if err == nil {
		_, err = unix.FcntlInt(uintptr(p.framed[0]), unix.F_SETPIPE_SZ, spliceSize)
	}
	if err != nil {
		return nil, fmt.Errorf("making pipes for port %s: %w", file.Name(), err)
	}
	return p, nil
}

// release lets go of what Close leaves, once nobody splices any more.
func (p *port) release() {
	for _, fd := range append(p.spliced[:], p.framed[:]...) {
		_ = unix.Close(fd)
	}
}

// Splice moves pages from pipe to pipe, and the last has them sent: this program's one processor, often an emulated one,
// copies nothing.
func (p *port) Splice(pipe, most int, header func(length int) []byte) (n int, err error) {
	rest := 0 // to be sent, headers and all
	for range spliceFrames {
		length, e := splice(pipe, p.spliced[1], min(most-n, guestlink.MaxFrame), unix.SPLICE_F_NONBLOCK)
		if length <= 0 {
			if n == 0 {
				return 0, e
			}
			break // the next call meets the error, or the end
		}
		head := header(length)
		n, rest = n+length, rest+len(head)+length
		if _, err := unix.Write(p.framed[1], head); err != nil {
			return n, err
		}
		if _, err := splice(p.spliced[0], p.framed[1], length, unix.SPLICE_F_NONBLOCK); err != nil {
			return n, err
		}
	}
	raw, err := p.SyscallConn() // keeps the descriptor, though the port be closed
	if err != nil {
		return n, err
	}
	failed := raw.Control(func(fd uintptr) {
		for sent := 0; rest > 0 && err == nil; rest -= sent {
			sent, err = splice(p.framed[0], int(fd), rest, 0)
		}
	})
	return n, errors.Join(failed, err)
}

func splice(from, to, most, flags int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, to, nil, most, flags)
		if !errors.Is(err, unix.EINTR) {
			return int(n), err
		}
	}
}

func (p *port) Read(b []byte) (int, error) {
	<-p.begins
	return p.File.Read(b)
}

func (p *port) Write(b []byte) (int, error) {
	n, err := p.File.Write(b)
	p.once.Do(func() { close(p.begins) })
	return n, err
}

// Exit tells the host the guest's exit code, 0 to 255. It counts if the guest then powers off; of several the last one does.
func Exit(code string) error {
	n, err := strconv.ParseUint(code, 10, 8)
	if err != nil {
		return fmt.Errorf("%q is no exit code: give a number of 0 to 255", code)
	}
	p, err := openPort(exitPort, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer p.Close()
	// A write that waits returns once QEMU has the number: the guest may power off then. It would wait for ever for nobody.
	ready := []unix.PollFd{{Fd: int32(p.Fd()), Events: unix.POLLOUT}} //nolint:gosec // a descriptor
	if _, err := unix.Poll(ready, exitTimeout); err != nil || ready[0].Revents != unix.POLLOUT {
		return fmt.Errorf("port %s: the host does not read it (events %#x)", exitPort, ready[0].Revents)
	}
	_, err = fmt.Fprintf(p, "%d\n", n)
	return err
}
