package dhcp

import (
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// datagrams is a Client over a UDP socket. Who sends is checked at the tap; chaddr tells the client.
type datagrams struct{ socket *os.File }

// Datagrams is the client behind a non-blocking UDP socket on the DHCP server's port, which is bound to the tap and may
// broadcast.
func Datagrams(socket *os.File) Client { return datagrams{socket} }

// receive makes the system call itself: to a File an empty datagram would be the end.
func (d datagrams) receive(buf []byte) (request []byte, err error) {
	raw, err := d.socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	var n int
	var failure error
	err = raw.Read(func(fd uintptr) bool {
		for failure = unix.EINTR; failure == unix.EINTR; {
			n, _, failure = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
		}
		return failure != unix.EAGAIN
	})
	switch {
	case err != nil:
		return nil, err
	case failure != nil:
		return nil, fmt.Errorf("recvfrom: %w", failure)
	}
	return buf[:n], nil
}

func (d datagrams) send(reply []byte, to netip.Addr) {
	raw, err := d.socket.SyscallConn()
	if err != nil {
		return // it is closed, as receive tells
	}
	_ = raw.Control(func(fd uintptr) { // a lost answer is asked for again
		_ = unix.Sendto(int(fd), reply, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Port: clientPort, Addr: to.As4()})
	})
}
