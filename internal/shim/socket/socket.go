package socket

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

const (
	backlog       = 64
	retryInterval = 10 * time.Second
)

// Serve listens on the address and calls handle with each connection, which is non-blocking and handle's to close. While
// something else has the address, or the machine lacks memory, it says so once and goes on trying. It never returns.
func Serve(address unix.Sockaddr, handle func(*os.File), logf func(string, ...any)) {
	said := ""
	for ; ; time.Sleep(retryInterval) {
		err := serve(address, handle)
		if err.Error() != said {
			said = err.Error()
			logf("%v; trying again each %v", err, retryInterval)
		}
	}
}

func serve(address unix.Sockaddr, handle func(*os.File)) error {
	family, kind, name := unix.AF_UNIX, unix.SOCK_SEQPACKET, "an abstract socket"
	switch a := address.(type) {
	case *unix.SockaddrUnix:
		name = a.Name
	case *unix.SockaddrInet4:
		family, kind, name = unix.AF_INET, unix.SOCK_STREAM, fmt.Sprintf("port %d", a.Port)
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("listening on %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	// Connections of the container's run before linger on the port.
	err = cmp.Or(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1), unix.Bind(fd, address), unix.Listen(fd, backlog))
	if errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listening on %s: another process of this pod does", name)
	}
	for err == nil {
		var conn int
		err = shimproto.Read(file, func(fd int) (err error) {
			conn, _, err = unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return err
		})
		switch {
		case err == nil:
			handle(os.NewFile(uintptr(conn), "connection"))
		case errors.Is(err, unix.ECONNABORTED):
			err = nil
		}
	}
	return fmt.Errorf("listening on %s: %w", name, err)
}

// Copy copies until from ends or to takes no more, with a buffer of so many bytes.
func Copy(to io.Writer, from io.Reader, size int) {
	// Of the bare interfaces: File's own ReadFrom would look for what it can splice.
	_, _ = io.CopyBuffer(struct{ io.Writer }{to}, struct{ io.Reader }{from}, make([]byte, size))
}
