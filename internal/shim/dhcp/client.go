package dhcp

import (
	"encoding/binary"
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

const (
	etherLen = 14
	ipLen    = 20
	udpLen   = 8
	headLen  = etherLen + ipLen + udpLen

	etherIPv4  = 0x0800
	protoUDP   = 17
	serverPort = 67
	clientPort = 68
)

var broadcastMAC = shimproto.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// frames is a Client over a packet socket, as agents before shimproto.KindDHCP hand it over.
type frames struct {
	socket *os.File
	lease  shimproto.Lease
}

// Frames is the client behind a non-blocking packet socket (AF_PACKET, SOCK_RAW), which is bound to the tap and filtered
// to DHCP requests.
func Frames(socket *os.File, lease shimproto.Lease) Client { return frames{socket, lease} }

func (f frames) receive(buf []byte) ([]byte, error) {
	n, err := f.socket.Read(buf)
	if err != nil {
		return nil, err
	}
	data, from, ok := payload(buf[:n])
	if !ok || from != f.lease.MAC {
		return nil, nil
	}
	return data, nil
}

func (f frames) send(reply []byte, to netip.Addr) {
	e := envelope{toMAC: f.lease.MAC, from: f.lease.Router, to: to}
	if to == everybody {
		e.toMAC = broadcastMAC
	}
	if own, err := unix.Getsockname(int(f.socket.Fd())); err == nil {
		if link, ok := own.(*unix.SockaddrLinklayer); ok {
			copy(e.fromMAC[:], link.Addr[:])
		}
	}
	_, _ = f.socket.Write(e.frame(reply)) // a lost answer is asked for again
}

// payload returns the UDP payload and the sender of an Ethernet frame with a whole IPv4 datagram to the DHCP server's port.
// Checksums are not verified: a guest with checksum offload leaves them to a device that does not exist here.
func payload(frame []byte) (data []byte, from shimproto.MAC, ok bool) {
	if len(frame) < headLen || binary.BigEndian.Uint16(frame[12:]) != etherIPv4 {
		return nil, from, false
	}
	ip := frame[etherLen:]
	head, total := int(ip[0]&0xf)*4, int(binary.BigEndian.Uint16(ip[2:]))
	fragment := binary.BigEndian.Uint16(ip[6:]) & 0x3fff // more fragments, offset
	if ip[0]>>4 != 4 || head < ipLen || total < head+udpLen || total > len(ip) || fragment != 0 || ip[9] != protoUDP {
		return nil, from, false
	}
	udp := ip[head:total]
	length := int(binary.BigEndian.Uint16(udp[4:]))
	if binary.BigEndian.Uint16(udp[2:]) != serverPort || length < udpLen || length > len(udp) {
		return nil, from, false
	}
	return udp[udpLen:length], shimproto.MAC(frame[6:12]), true
}

// envelope is where a reply goes.
type envelope struct {
	fromMAC, toMAC shimproto.MAC
	from, to       netip.Addr
}

// frame wraps data, a reply to a client, in UDP, IPv4 and Ethernet.
func (e envelope) frame(data []byte) []byte {
	f := make([]byte, headLen, headLen+len(data))
	copy(f, e.toMAC[:])
	copy(f[6:], e.fromMAC[:])
	binary.BigEndian.PutUint16(f[12:], etherIPv4)

	from, to := e.from.As4(), e.to.As4()
	ip := f[etherLen:]
	ip[0] = 4<<4 | ipLen/4
	binary.BigEndian.PutUint16(ip[2:], uint16(ipLen+udpLen+len(data))) //nolint:gosec // a reply is smaller
	ip[8], ip[9] = 64, protoUDP
	copy(ip[12:], from[:])
	copy(ip[16:], to[:])
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum(0, ip[:ipLen]))) //nolint:gosec // folded

	udp := ip[ipLen:]
	length := uint16(udpLen + len(data)) //nolint:gosec // a reply is smaller
	binary.BigEndian.PutUint16(udp, serverPort)
	binary.BigEndian.PutUint16(udp[2:], clientPort)
	binary.BigEndian.PutUint16(udp[4:], length)
	pseudo := sum(sum(uint32(protoUDP)+uint32(length), ip[12:20]), udp[:udpLen])
	check := ^uint16(sum(pseudo, data)) //nolint:gosec // folded
	if check == 0 {
		check = 0xffff // RFC 768: zero would mean none
	}
	binary.BigEndian.PutUint16(udp[6:], check)
	return append(f, data...)
}

// sum adds data, an even number of bytes unless it is the last part, to the one's complement sum of RFC 1071.
func sum(start uint32, data []byte) uint32 {
	for len(data) > 1 {
		start += uint32(binary.BigEndian.Uint16(data))
		data = data[2:]
	}
	if len(data) == 1 {
		start += uint32(data[0]) << 8
	}
	for start > 0xffff {
		start = start&0xffff + start>>16
	}
	return start
}
