package dhcp

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

const (
	clientPort = 68 // the DHCP client's
	headers    = 28 // of IPv4 and UDP, in bytes
)

// udpClient is the guest's DHCP client, as a socket reaches it. Who sends is checked at the tap; chaddr tells the client.
type udpClient struct{ socket *os.File }

// receive waits for a request and returns it, in buf. It makes the system call itself: to a File an empty datagram would be
// the end.
func (c udpClient) receive(buf []byte) ([]byte, error) {
	var n int
	err := shimproto.Read(c.socket, func(fd int) (err error) {
		n, _, err = unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
		return err
	})
	return buf[:max(n, 0)], err
}

// send sends a reply to the client, by its address or to everybody. One that is lost it asks for again.
func (c udpClient) send(reply []byte, to netip.Addr) {
	_ = unix.Sendto(int(c.socket.Fd()), reply, unix.MSG_DONTWAIT, &unix.SockaddrInet4{Port: clientPort, Addr: to.As4()})
}
