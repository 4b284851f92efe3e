package guest

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/shim/client"
)

const (
	// requestTimeout is how long a client may take to send its request.
	requestTimeout = 10 * time.Second

	maxFiles = 3 // standard input, output and error
)

var errStranger = errors.New("it is a process of another container")

// request lets a client send its request, if it is of this container, and returns that with the descriptors that came.
//
// A number of a process can be another's by the time that it is looked at, so what is held is the process's directory,
// which is that of one process for ever: nothing was sent before it was opened, and whoever sent the request had the
// number after that, and is there still.
func request(conn *os.File) (r client.Request, command []byte, files []*os.File, err error) {
	process, peer, err := look(int(conn.Fd()))
	if err != nil {
		return r, nil, nil, err
	}
	defer unix.Close(process)
	if _, err = conn.Write(client.Go()); err == nil {
		err = conn.SetReadDeadline(time.Now().Add(requestTimeout))
	}
	if err != nil {
		return r, nil, nil, err
	}
	size := 0 // of what comes, so that who sends nothing costs nothing
	err = shimproto.Read(conn, func(fd int) (err error) {
		size, _, err = unix.Recvfrom(fd, nil, unix.MSG_PEEK|unix.MSG_TRUNC|unix.MSG_DONTWAIT)
		return err
	})
	if err != nil {
		return r, nil, nil, err
	}
	packet, rights := make([]byte, min(size, client.MaxRequest+1)), make([]byte, unix.CmsgSpace(4*maxFiles)+unix.CmsgSpace(unix.SizeofUcred))
	size, files, sender, err := shimproto.ReadPacket(conn, packet, rights)
	switch {
	case err != nil:
	case sender != peer.Pid || !isOurs(process):
		err = errStranger
	case len(files) > maxFiles: // there is room for one more, as the kernel rounds up
		err = fmt.Errorf("a request with %d descriptors, more than %d", len(files), maxFiles)
	default:
		if r, command, err = client.ParseRequest(packet[:size]); err == nil {
			return r, command, files, conn.SetReadDeadline(time.Time{})
		}
	}
	shimproto.CloseAll(files)
	return r, nil, nil, err
}

// look returns the directory in /proc of the process that has connected, if that is of this container.
func look(fd int) (process int, peer *unix.Ucred, err error) {
	if peer, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED); err != nil {
		return 0, nil, err
	}
	if peer.Pid <= 0 { // of another PID namespace
		return 0, nil, errStranger
	}
	process, err = unix.Open("/proc/"+strconv.Itoa(int(peer.Pid)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, nil, err
	}
	_, _, early := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if !isOurs(process) || !errors.Is(early, unix.EAGAIN) {
		_ = unix.Close(process)
		return 0, nil, errStranger
	}
	return process, peer, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSCRED, 1)
}

// isOurs: the process has the shim's own mount namespace. The namespaces themselves are hidden from a shim that Landlock
// confines, as it may trace nobody; its list of mounts is not, and a mount is of one namespace, as its ID is of one mount.
func isOurs(process int) bool {
	own := firstMount(unix.AT_FDCWD, "/proc/self/mountinfo")
	return own != "" && own == firstMount(process, "mountinfo")
}

// firstMount is the ID of the first mount in a process's list (proc_pid_mountinfo(5)), "" if it has ended.
func firstMount(dir int, path string) string {
	fd, err := unix.Openat(dir, path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	line := make([]byte, 32)
	n, _ := unix.Read(fd, line) // fails for a process that has ended
	id, _, isWhole := strings.Cut(string(line[:max(n, 0)]), " ")
	if !isWhole {
		return ""
	}
	return id
}
