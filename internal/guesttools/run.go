package guesttools

import (
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/guestlink"
)

const leaveTimeout = time.Second // the host may have stopped reading

func logf(format string, args ...any) { fmt.Fprintf(os.Stderr, "berth-guest: "+format+"\n", args...) }

// Run serves the guest's port until SIGTERM or SIGINT, then it ends the process.
func Run(version string) error {
	inheritable()
	added := make(chan struct{}, 1)
	go func() {
		err := watch(func() {
			select {
			case added <- struct{}{}:
			default:
			}
		})
		if err != nil {
			logf("hot-added processors and memory stay offline: %v", err)
		}
	}()
	var link atomic.Pointer[guestlink.Link]
	go leaveOnSignal(&link)
	for {
		file, err := openPort(guestPort, unix.O_RDWR)
		if errors.Is(err, errNoPort) {
			<-added // the module virtio_console may come later
			continue
		}
		if err != nil {
			return err
		}
		port, err := newPort(file)
		if err != nil {
			return err
		}
		link.Store(newLink(version))
		logf("the host's end has closed: %v", link.Load().Serve(port))
		port.release()
	}
}

func newLink(version string) *guestlink.Link {
	return &guestlink.Link{Version: version, Accept: accept, Changed: func(up bool, _ string) {
		if up {
			logf("serving this guest's berth")
		}
	}}
}

// inheritable makes the process what its commands are to inherit. A signal that is caught here, though nothing comes of
// it, is at its default there, even if whoever started this program had it ignored.
func inheritable() {
	syscall.Umask(0o022)
	signal.Notify(make(chan os.Signal, 1))
	_ = unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC) // since Linux 5.11: descriptors that were left open to it
}

func leaveOnSignal(link *atomic.Pointer[guestlink.Link]) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	<-signals
	time.AfterFunc(leaveTimeout, func() { os.Exit(0) })
	if l := link.Load(); l != nil {
		l.Leave()
	}
	os.Exit(0)
}
