package shimproto

import (
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// errBroken is a packet that is too long, or whose descriptors do not fit.
var errBroken = errors.New("packet is truncated")

// socket is one end of the pair. Reads and writes wait in Go's poller and never
// in the kernel: MSG_DONTWAIT holds even if the other side clears O_NONBLOCK,
// which is a property of the end and not of anybody's descriptor for it.
type socket struct {
	file *os.File
	raw  syscall.RawConn
}

func newSocket(fd int, name string) (*socket, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("making %s non-blocking: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	raw, err := file.SyscallConn()
	if err == nil {
		err = file.SetDeadline(time.Time{}) // fails if the poller has refused the descriptor
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("polling %s: %w", name, err), file.Close())
	}
	return &socket{file: file, raw: raw}, nil
}

// send writes one packet, and waits while the socket is full.
func (s *socket) send(data []byte) error {
	var failure error
	err := s.raw.Write(func(fd uintptr) bool {
		failure = sendmsg(fd, data, nil)
		return !errors.Is(failure, unix.EAGAIN)
	})
	return errors.Join(err, failure)
}

// trySend writes one packet with copies of files. It never waits: while the socket is full it fails with ErrFull.
func (s *socket) trySend(data []byte, files []*os.File) error {
	var failure error
	err := withDescriptors(files, nil, func(fds []int) error {
		return s.raw.Control(func(fd uintptr) { failure = sendmsg(fd, data, fds) })
	})
	if errors.Is(failure, unix.EAGAIN) {
		failure = ErrFull
	}
	return errors.Join(err, failure)
}

func sendmsg(fd uintptr, data []byte, fds []int) (err error) {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Sendmsg(int(fd), data, rights, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
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
	return errors.Join(err, inner)
}

// receive reads one packet into data and its descriptors into rights. Without
// room for them the kernel never makes them ours, and the packet is errBroken.
// io.EOF means that the other end is gone.
func (s *socket) receive(data, rights []byte) (n int, files []*os.File, err error) {
	var used, flags int
	var failure error
	err = s.raw.Read(func(fd uintptr) bool {
		for failure = unix.EINTR; failure == unix.EINTR; {
			n, used, flags, _, failure = unix.Recvmsg(int(fd), data, rights, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		}
		return failure != unix.EAGAIN
	})
	switch {
	case err != nil:
		return 0, nil, err
	case failure == unix.ECONNRESET:
		return 0, nil, io.EOF
	case failure != nil:
		return 0, nil, os.NewSyscallError("recvmsg", failure)
	}
	if files, err = passed(rights[:used]); err != nil {
		return 0, nil, err
	}
	switch {
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		closeAll(files)
		return 0, nil, errBroken
	case n == 0:
		closeAll(files)
		return 0, nil, io.EOF
	}
	return n, files, nil
}

// passed makes non-blocking files of the descriptors in a control message.
func passed(rights []byte) ([]*os.File, error) {
	if len(rights) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil {
		return nil, fmt.Errorf("parsing a control message: %w", err)
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // credentials, say
		}
		for _, fd := range fds {
			if err := unix.SetNonblock(fd, true); err != nil && !errors.Is(err, unix.EBADF) { // O_PATH has no such flag
				_ = unix.Close(fd)
				continue
			}
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
