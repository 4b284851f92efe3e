package shimproto

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// errBroken is a packet that is too long, or whose descriptors do not fit.
var errBroken = errors.New("packet is truncated")

// pollable makes a file of a descriptor, which it owns, on which Go's poller waits.
func pollable(fd int, name string) (*os.File, error) {
	err := unix.SetNonblock(fd, true)
	file := os.NewFile(uintptr(fd), name)
	if err == nil {
		err = file.SetDeadline(time.Time{}) // fails if the poller has refused the descriptor
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("polling %s: %w", name, err), file.Close())
	}
	return file, nil
}

// Read makes a system call that reads from a file's descriptor, and again each time that there may be something, while it
// fails with EAGAIN. A File's own Read takes no descriptors, and an empty packet for the end.
func Read(file *os.File, call func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Read(func(fd uintptr) bool {
		for failure = unix.EINTR; errors.Is(failure, unix.EINTR); {
			failure = call(int(fd))
		}
		return !errors.Is(failure, unix.EAGAIN)
	})
	return cmp.Or(err, failure)
}

// trySend writes one packet with copies of files. It never waits: while the socket is full it fails with ErrFull. It asks
// for that itself, as the shim can clear O_NONBLOCK, which is a property of the end and not of anybody's descriptor for it.
func trySend(socket *os.File, data []byte, files []*os.File) error {
	err := withDescriptors(append([]*os.File{socket}, files...), nil, func(fds []int) error {
		return unix.Sendmsg(fds[0], data, unix.UnixRights(fds[1:]...), nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	if errors.Is(err, unix.EAGAIN) {
		return ErrFull
	}
	return err
}

// withDescriptors calls do with the descriptors of files, which stay open and as
// they are meanwhile. (File.Fd would make them blocking.)
func withDescriptors(files []*os.File, fds []int, do func([]int) error) error {
	if len(files) == 0 {
		return do(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = withDescriptors(files[1:], append(fds, int(fd)), do) })
	return cmp.Or(err, inner)
}

// ReadPacket reads one packet of a SEQPACKET socket into data, and who sent it if the socket has SO_PASSCRED, and makes
// non-blocking files of the descriptors that come with it. They pass through rights: without room there the kernel never
// makes them ours, and the packet is an error. io.EOF means that the other end is gone.
func ReadPacket(socket *os.File, data, rights []byte) (n int, files []*os.File, sender int32, err error) {
	var used, flags int
	err = Read(socket, func(fd int) (err error) {
		n, used, flags, _, err = unix.Recvmsg(fd, data, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		return err
	})
	if errors.Is(err, unix.ECONNRESET) {
		return 0, nil, 0, io.EOF
	}
	if err != nil {
		return 0, nil, 0, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:used])
	for _, m := range messages {
		if fds, err := unix.ParseUnixRights(&m); err == nil {
			for _, fd := range fds {
				_ = unix.SetNonblock(fd, true) // but of O_PATH, which has no such flag
				files = append(files, os.NewFile(uintptr(fd), "passed"))
			}
		} else if who, err := unix.ParseUnixCredentials(&m); err == nil {
			sender = who.Pid
		}
	}
	switch {
	case err != nil:
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = errBroken
	case n == 0:
		err = io.EOF
	default:
		return n, files, sender, nil
	}
	CloseAll(files)
	return 0, nil, 0, err
}

// CloseAll closes files.
func CloseAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close() // nil if it was taken
	}
}
