package shim

import (
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/shim/socket"
)

const (
	screenPort = 5900     // VNC's display 0
	maxViewers = 8        // who may look at once; others are hung up on
	viewBuffer = 16 << 10 // bytes for each viewer and direction
)

// serveScreen lets viewers see the guest's screen, at the VNC port of the pod's loopback, to which kubectl port-forward
// leads: it joins each with a connection of its own to QEMU's VNC socket, of which vnc is an O_PATH descriptor. It reads
// nothing of what they say, and never returns.
func serveScreen(vnc *os.File) {
	viewers := make(chan struct{}, maxViewers)
	socket.Serve(&unix.SockaddrInet4{Port: screenPort, Addr: [4]byte{127, 0, 0, 1}}, func(viewer *os.File) {
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
	var both sync.WaitGroup
	for to, from := range map[*os.File]*os.File{viewer: qemu, qemu: viewer} {
		both.Go(func() {
			socket.Copy(to, from, viewBuffer)
			_, _ = viewer.Close(), qemu.Close() // ends the other direction
		})
	}
	both.Wait()
}
