package console

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/shim/socket"
)

const (
	ringSize   = 256 << 10
	outputSize = 16 << 10
	inputSize  = 4 << 10 // what a terminal holds at most
)

// Console is one guest's console. Its methods are for one goroutine, but for what Attach says.
type Console struct {
	stdin, stdout *os.File
	written       chan struct{} // closed once all is that QEMU wrote; nil before Attach
}

// New makes a console of the container's stdin and stdout. If stdin is a terminal it becomes raw: what an attached user
// types reaches the guest as it is, control characters too, and comes back only if the guest echoes it.
func New(stdin, stdout *os.File) (*Console, error) {
	if _, err := MakeRaw(stdin); err != nil {
		return nil, fmt.Errorf("making the terminal raw: %w", err)
	}
	return &Console{stdin: stdin, stdout: stdout}, nil
}

// Attach starts to copy both ways, and owns qemu, a stream socket that must be non-blocking, from now on. It calls closed,
// on a goroutine of its own, once QEMU has closed its end. It may be called once.
func (c *Console) Attach(qemu *os.File, closed func()) {
	c.written = make(chan struct{})
	output := newRing(ringSize)
	go c.write(output)
	go func() {
		socket.Copy(output, qemu, outputSize)
		output.close()
		closed()
	}()
	go socket.Copy(qemu, c.stdin, inputSize) // a guest that reads nothing holds up only who types
}

// Flush waits until QEMU has closed its end and all that it wrote is on stdout,
// but not longer than timeout: nobody may be reading.
func (c *Console) Flush(timeout time.Duration) {
	if c.written == nil {
		return
	}
	select {
	case <-c.written:
	case <-time.After(timeout):
	}
}

// write moves the ring's bytes to stdout, to the end. It blocks as long as stdout does.
func (c *Console) write(output *ring) {
	defer close(c.written)
	buf := make([]byte, outputSize)
	for {
		data := output.take(buf)
		if len(data) == 0 {
			return
		}
		_, _ = c.stdout.Write(data) // if nobody can read it any more, the guest is not to wait for that
	}
}

// MakeRaw does what cfmakeraw(3) does, if f is a terminal, and returns how it was before; nil if it is none.
func MakeRaw(f *os.File) (before *unix.Termios, err error) {
	fd := int(f.Fd())
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EBADF) || errors.Is(err, unix.EIO) || errors.Is(err, unix.EINVAL) {
		return nil, nil // a pipe, /dev/null, or nothing at all
	}
	if err != nil {
		return nil, err
	}
	saved := *t
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return &saved, unix.IoctlSetTermios(fd, unix.TCSETS, t)
}
