package console

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

const (
	// displaysMode lets QEMU's users through to their own directories; none can list them.
	displaysMode = 0o711
	vnc          = "vnc.sock"
	// viewersMode is that of the socket once the shim has it, which is another user than QEMU. Others do not come as far.
	viewersMode = 0o666
)

func (s *Sockets) displayDir(uid string) string { return filepath.Join(s.displays, uid) }

// MakeDisplay makes the directory in which QEMU, which runs as user, makes the socket of its display, and returns the
// path of that. A socket that is left from before is removed: QEMU would not take its place.
func (s *Sockets) MakeDisplay(uid string, user int) (path string, err error) {
	dir := s.displayDir(uid)
	err = errors.Join(os.RemoveAll(dir), os.Mkdir(dir, 0o700))
	if err == nil {
		err = os.Lchown(dir, user, -1)
	}
	return filepath.Join(dir, vnc), fault.Doing(err, "making the display's directory")
}

// OpenDisplay returns the socket of a guest's display as an O_PATH descriptor, to which whoever holds it may connect. The
// directory is QEMU's, which may have put anything in the socket's place: what is returned is a socket that its user
// made, and no other name of another one.
func (s *Sockets) OpenDisplay(uid string, user int) (*os.File, error) {
	dir, err := unix.Open(s.displayDir(uid), unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, notDisplayed(err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat(dir, vnc, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, notDisplayed(err)
	}
	file := os.NewFile(uintptr(fd), vnc)
	var st unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil && (st.Mode&unix.S_IFMT != unix.S_IFSOCK || int(st.Uid) != user || st.Nlink != 1) {
		err = fmt.Errorf("it has mode %#o, owner %d and %d links, and is to be a socket of user %d", st.Mode, st.Uid, st.Nlink, user)
	}
	if err == nil {
		err = unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), viewersMode) // an O_PATH descriptor has no other way
	}
	if err != nil {
		_ = file.Close()
		return nil, notDisplayed(err)
	}
	return file, nil
}

func notDisplayed(err error) error {
	return fault.NewTransient(v1alpha1.ReasonStarting, fmt.Errorf("opening the socket of the guest's display: %w", err))
}
