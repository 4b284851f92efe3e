package guesttools

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// The ports' names on virtio-serial.
const (
	guestPort = "dev.berth.guest.0"
	exitPort  = "dev.berth.exit.0"

	exitTimeout = 10_000 // milliseconds
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
