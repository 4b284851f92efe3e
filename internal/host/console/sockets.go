package console

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const suffix = ".sock"

// Sockets are those of all guests of the host.
type Sockets struct{ dir string }

// New makes their directory, unless it is there.
func New(dir string) (*Sockets, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("creating the consoles' directory: %w", err)
	}
	return &Sockets{dir}, nil
}

// Path is the path of a guest's socket, by the VirtualMachine's UID.
func (s *Sockets) Path(uid string) string { return filepath.Join(s.dir, uid+suffix) }

// Exists tells whether a guest has a socket, or has left one.
func (s *Sockets) Exists(uid string) bool {
	_, err := os.Lstat(s.Path(uid))
	return err == nil
}

// Connect connects to a guest's socket and returns the connection as a file. Who gets that cannot name it any more: it
// belongs to the host's network namespace, and so would an abstract name that it took.
func (s *Sockets) Connect(ctx context.Context, uid string) (*os.File, error) {
	conn, err := (&net.Dialer{Control: autobind}).DialContext(ctx, "unix", s.Path(uid))
	if err != nil {
		return nil, fault.NewTransient(v1alpha1.ReasonStarting, fmt.Errorf("connecting to the console: %w", err))
	}
	defer conn.Close()
	file, err := conn.(*net.UnixConn).File()
	if err != nil {
		return nil, fmt.Errorf("duplicating the console's socket: %w", err)
	}
	return file, nil
}

// autobind gives a socket a name of the kernel's choice, the only one that it ever has. unix(7).
func autobind(_, _ string, socket syscall.RawConn) error {
	var failure error
	err := socket.Control(func(fd uintptr) { failure = unix.Bind(int(fd), &unix.SockaddrUnix{}) })
	return errors.Join(err, failure)
}

// Remove removes a guest's socket. One that is absent is no error.
func (s *Sockets) Remove(uid string) error {
	if err := os.Remove(s.Path(uid)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing the console's socket: %w", err)
	}
	return nil
}

// List returns the UIDs of the guests that have a socket.
func (s *Sockets) List() (uids []string, err error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("listing the consoles: %w", err)
	}
	for _, e := range entries {
		if uid, ok := strings.CutSuffix(e.Name(), suffix); ok {
			uids = append(uids, uid)
		}
	}
	return uids, nil
}
