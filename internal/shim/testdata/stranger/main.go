// Command stranger talks to the shim as no client of it does. It prints what it finds, and ends when its input does.
package main

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const address = "@berth-shim"

func main() {
	switch os.Args[1] {
	case "listen":
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
		fmt.Println(err, unix.Bind(fd, &unix.SockaddrUnix{Name: address}), unix.Listen(fd, 10))
	case "dial":
		conn, err := dial()
		fmt.Println(err, readPacket(conn), unix.Sendto(conn, request("true"), unix.MSG_NOSIGNAL, nil), readPacket(conn))
	case "flood":
		var fds []int
		for i := range 60 { // as many as the shim takes at once, but for some
			conn, err := dial()
			if err != nil {
				fmt.Println(err)
			}
			fds = append(fds, conn)
			if packet := readPacket(conn); packet != "\x01" {
				fmt.Printf("greeted by %q\n", packet)
			}
			if i%2 == 0 {
				_ = unix.Sendto(conn, bytes.Repeat([]byte{byte(i)}, i*1000), unix.MSG_NOSIGNAL, nil)
			}
		}
		fmt.Println("flooded", len(fds))
	case "order": // are our descriptors closed by the time that the code comes?
		r, w, _ := os.Pipe()
		conn, _ := dial()
		_ = readPacket(conn)
		null := int(devNull().Fd())
		_ = unix.Sendmsg(conn, request("seq", "100"), unix.UnixRights(null, int(w.Fd()), null), nil, 0)
		_ = w.Close()
		go func() { _, _ = io.Copy(io.Discard, r) }() // the shim closes it once its bytes are taken
		answer := readPacket(conn)
		poll := []unix.PollFd{{Fd: int32(r.Fd()), Events: unix.POLLIN}}
		_, err := unix.Poll(poll, 0)
		fmt.Printf("answer %q, hung up %v, %v\n", answer, poll[0].Revents&unix.POLLHUP != 0, err)
		return
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func devNull() *os.File { f, _ := os.Open(os.DevNull); return f }

func dial() (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: address})
	}
	return fd, err
}

func readPacket(fd int) string {
	packet := make([]byte, 1<<10)
	n, err := unix.Read(fd, packet)
	if err != nil {
		return err.Error()
	}
	return string(packet[:n])
}

// request is one for a command, as the client writes it.
func request(arg ...string) []byte {
	return append([]byte{1, 1}, "false false 0 0 "+strconv.Itoa(len(arg))+"\x00\x00\x00"+strings.Join(arg, "\x00")...)
}
