package console

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

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
