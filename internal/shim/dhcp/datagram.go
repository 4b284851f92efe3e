package dhcp

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

// datagrams is a Client over a UDP socket. Who sends is checked at the tap; chaddr tells the client.
type datagrams struct{ socket *os.File }

// Datagrams is the client behind a non-blocking UDP socket on the DHCP server's port, which is bound to the tap and may
// broadcast.
func Datagrams(socket *os.File) Client { return datagrams{socket} }

// receive makes the system call itself: to a File an empty datagram would be the end.
func (d datagrams) receive(buf []byte) ([]byte, error) {
	var n int
	err := shimproto.Read(d.socket, func(fd int) (err error) {
		n, _, err = unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		return err
	})
	return buf[:max(n, 0)], err
}

// send sends what the client asks for again if it is lost.
func (d datagrams) send(reply []byte, to netip.Addr) {
	_ = unix.Sendto(int(d.socket.Fd()), reply, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Port: clientPort, Addr: to.As4()})
}
