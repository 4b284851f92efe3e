package dhcp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

// leaseTime bounds for how long a guest could keep settings of a berth that was replaced under it.
const leaseTime = time.Hour

// maxFrame is longer than any frame of a DHCP client.
const maxFrame = 4096

// Serve answers the guest's requests with the lease and the name servers
// of the given resolv.conf. It returns when the socket fails or is closed. The
// socket is a non-blocking packet socket (AF_PACKET, SOCK_RAW) bound to the tap.
func Serve(socket *os.File, lease shimproto.Lease, resolvConf string) error {
	s := server{lease: lease, dns: parseResolv(resolvConf)}
	buf := make([]byte, maxFrame)
	for {
		n, err := socket.Read(buf)
		if errors.Is(err, unix.ENETDOWN) {
			continue // told once each time the tap goes down; it may come up again
		}
		if err != nil {
			return fmt.Errorf("reading the guest's DHCP requests: %w", err)
		}
		if answer := s.safely(buf[:n]); answer != nil {
			copy(answer[6:], ownMAC(socket))
			_, _ = socket.Write(answer) // a lost answer is asked for again
		}
	}
}

type server struct {
	lease shimproto.Lease
	dns   resolver
}

// safely is answer, but a bug in it costs only the answer.
func (s server) safely(frame []byte) (reply []byte) {
	defer func() {
		if recover() != nil {
			reply = nil
		}
	}()
	return s.answer(frame)
}

// answer returns the frame, but for its source address, that answers a client's; nil if nothing does.
func (s server) answer(frame []byte) []byte {
	data, from, ok := payload(frame)
	if !ok || from != s.lease.MAC {
		return nil
	}
	q, ok := parse(data)
	if !ok || q.client != s.lease.MAC {
		return nil
	}
	kind := s.decide(q)
	if kind == 0 {
		return nil
	}
	return s.route(q, kind).frame(s.write(q, kind))
}

// decide returns the type of the reply, 0 for none. RFC 2131, 4.3.
func (s server) decide(q query) byte {
	switch {
	case q.server.IsValid() && q.server != s.lease.Router:
		return 0 // meant for another server
	case q.kind == discover:
		return offer
	case q.kind == inform && q.current == s.address():
		return ack
	case q.kind != request:
		return 0
	}
	wanted := q.requested // selecting, or after the guest's reboot
	if !q.current.IsUnspecified() {
		wanted = q.current // renewing
	}
	switch {
	case !wanted.IsValid():
		return 0
	case wanted != s.address():
		return nak
	default:
		return ack
	}
}

// route tells where the reply to q goes. RFC 2131, 4.1.
func (s server) route(q query, kind byte) envelope {
	e := envelope{toMAC: s.lease.MAC, from: s.lease.Router, to: s.address()}
	if kind == nak || q.broadcast && q.current.IsUnspecified() {
		e.toMAC, e.to = broadcastMAC, netip.AddrFrom4([4]byte{255, 255, 255, 255})
	}
	return e
}

// write makes the reply. What a guest needs most comes first: an option that does not fit is left out.
func (s server) write(q query, kind byte) []byte {
	r := q.reply(kind)
	r.addAddr(optServerID, s.lease.Router)
	r.add(optClientID, q.clientID...) // RFC 6842
	if kind == nak {
		return r.bytes()
	}
	if kind == ack {
		copy(r.data[12:], q.current.AsSlice())
	}
	if q.kind != inform {
		copy(r.data[16:], s.address().AsSlice())
		seconds := uint32(leaseTime / time.Second)
		r.addUint32(optLeaseTime, seconds)
		r.addUint32(optRenewalTime, seconds/2)
		r.addUint32(optRebindTime, seconds/8*7)
	}
	hostPart, own := ^uint32(0)>>s.lease.Address.Bits(), s.address().As4()
	r.addUint32(optMask, ^hostPart)
	r.addAddr(optRouter, s.lease.Router)
	r.addUint32(optBroadcast, binary.BigEndian.Uint32(own[:])|hostPart)
	r.add(optMTU, binary.BigEndian.AppendUint16(nil, uint16(s.lease.MTU))...) //nolint:gosec // the protocol has checked it
	var servers []byte
	for _, addr := range s.dns.servers {
		servers = append(servers, addr.AsSlice()...)
	}
	r.add(optDNS, servers...)
	if len(s.lease.Hostname) <= 63 {
		r.add(optHostname, []byte(s.lease.Hostname)...)
	}
	if len(s.dns.search) > 0 {
		r.add(optDomain, []byte(s.dns.search[0])...)
		r.add(optDomainSearch, searchOption(s.dns.search)...)
	}
	return r.bytes()
}

func (s server) address() netip.Addr { return s.lease.Address.Addr() }

// ownMAC is the hardware address of the socket's interface, or nothing.
func ownMAC(socket *os.File) (mac []byte) {
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil
	}
	_ = raw.Control(func(fd uintptr) {
		if addr, err := unix.Getsockname(int(fd)); err == nil {
			if ll, ok := addr.(*unix.SockaddrLinklayer); ok && ll.Halen == 6 {
				mac = ll.Addr[:6]
			}
		}
	})
	return mac
}
