package console

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const suffix = ".sock"

// Socket is which of a guest's sockets one is, as its file's name says it.
type Socket string

// The sockets that libvirt makes. Each takes one peer at a time; another waits until that is gone.
const (
	Serial    Socket = ""
	GuestPort Socket = ".guest" // dev.berth.guest.0
	ExitPort  Socket = ".exit"  // dev.berth.exit.0
)

// Sockets are those of all guests of the host. The path of a guest's sockets is known by its VirtualMachine's UID. Ports
// have a directory of their own: an older agent takes whatever is in that of the consoles for a console.
type Sockets struct{ consoles, ports, displays string }

// New makes their directories in dir, unless they are there.
func New(dir string) (*Sockets, error) {
	s := &Sockets{filepath.Join(dir, "consoles"), filepath.Join(dir, "ports"), filepath.Join(dir, "displays")}
	err := errors.Join(os.MkdirAll(s.consoles, 0o700), os.MkdirAll(s.ports, 0o700), os.MkdirAll(s.displays, displaysMode))
	return s, fault.Doing(err, "creating the directories of QEMU's sockets")
}

// Path is the path of a guest's socket.
func (s *Sockets) Path(uid string, which Socket) string {
	dir := s.ports
	if which == Serial {
		dir = s.consoles
	}
	return filepath.Join(dir, uid+string(which)+suffix)
}

// all are the paths of all that a guest may have or have left.
func (s *Sockets) all(uid string) []string {
	return []string{s.Path(uid, Serial), s.Path(uid, GuestPort), s.Path(uid, ExitPort), s.displayDir(uid)}
}

// Exists tells whether a guest has sockets, or has left any.
func (s *Sockets) Exists(uid string) bool {
	return slices.ContainsFunc(s.all(uid), func(path string) bool {
		_, err := os.Lstat(path)
		return err == nil
	})
}

// Connect connects to a guest's socket and returns the connection as a file. Who gets that cannot name it any more: it
// belongs to the host's network namespace, and so would an abstract name that it took.
func (s *Sockets) Connect(ctx context.Context, uid string, which Socket) (*os.File, error) {
	path := s.Path(uid, which)
	conn, err := (&net.Dialer{Control: autobind}).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fault.NewTransient(v1alpha1.ReasonStarting, fmt.Errorf("connecting to QEMU's socket %s: %w", filepath.Base(path), err))
	}
	defer conn.Close()
	file, err := conn.(*net.UnixConn).File()
	return file, fault.Doing(err, "duplicating QEMU's socket %s", filepath.Base(path))
}

// autobind gives a socket a name of the kernel's choice, the only one that it ever has. unix(7).
func autobind(_, _ string, socket syscall.RawConn) error {
	var failure error
	err := socket.Control(func(fd uintptr) { failure = unix.Bind(int(fd), &unix.SockaddrUnix{}) })
	return errors.Join(err, failure)
}

// Remove removes a guest's sockets. Those that are absent are no error.
func (s *Sockets) Remove(uid string) error {
	var errs []error
	for _, path := range s.all(uid) {
		errs = append(errs, os.RemoveAll(path))
	}
	return fault.Doing(errors.Join(errs...), "removing the guest's sockets")
}

// List returns the UIDs of the guests that have sockets, each once, sorted.
func (s *Sockets) List() (uids []string, err error) {
	for _, dir := range []string{s.consoles, s.ports, s.displays} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("listing the guests' sockets: %w", err)
		}
		for _, e := range entries {
			uid, _, is := strings.Cut(e.Name(), ".")
			if is && filepath.Ext(e.Name()) == suffix || dir == s.displays {
				uids = append(uids, uid)
			}
		}
	}
	slices.Sort(uids)
	return slices.Compact(uids), nil
}
