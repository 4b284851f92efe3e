package screen

import (
	"io"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/shim/socket"
)

const (
	// Port is VNC's display 0.
	Port = 5900
	// MaxViewers is how many may look at once; others are hung up on.
	MaxViewers = 8

	bufferSize = 16 << 10 // for each viewer and direction
)

// Serve serves viewers of QEMU's VNC socket, of which vnc is an O_PATH descriptor. It never returns.
func Serve(vnc *os.File, logf func(string, ...any)) {
	viewers := make(chan struct{}, MaxViewers)
	socket.Serve(&unix.SockaddrInet4{Port: Port, Addr: [4]byte{127, 0, 0, 1}}, func(viewer *os.File) {
		select {
		case viewers <- struct{}{}:
			go func() {
				defer func() { <-viewers }()
				view(viewer, "/proc/self/fd/"+strconv.Itoa(int(vnc.Fd())))
			}()
		default:
			_ = viewer.Close()
		}
	}, logf)
}

// view joins a viewer with QEMU until either ends. One that does not read holds up QEMU's updates for itself alone.
func view(viewer *os.File, path string) {
	defer viewer.Close()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return
	}
	qemu := os.NewFile(uintptr(fd), "VNC")
	defer qemu.Close()
	if unix.Connect(fd, &unix.SockaddrUnix{Name: path}) != nil { // QEMU has ended, or has connections enough that wait
		return
	}
	typed := make(chan struct{})
	go func() {
		defer close(typed)
		join(qemu, viewer)
		_, _ = viewer.Close(), qemu.Close()
	}()
	join(viewer, qemu)
	_, _ = viewer.Close(), qemu.Close()
	<-typed
}

// join copies until from ends or to takes no more.
func join(to, from *os.File) {
	// Of the bare interfaces: File's own ReadFrom would look for what it can splice.
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, bufferSize))
}
