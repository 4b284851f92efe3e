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

// clientPort is the DHCP client's.
const clientPort = 68

// maxPacket is longer than any of a DHCP client's.
const maxPacket = 4096

// everybody is the address of a broadcast on one's own link.
var everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// Serve answers the guest's requests with the lease and the name servers and search list of the given resolv.conf. The socket is
// a non-blocking one of UDP on the DHCP server's port, which is bound to the tap and may broadcast. It returns when that fails
// or is closed. What a client had no room for is told to logf.
func Serve(socket *os.File, lease shimproto.Lease, resolvConf string, logf func(format string, args ...any)) error {
	return serve(udpClient{socket}, lease, resolvConf, logf)
}

func serve(client interface {
	receive(buf []byte) (request []byte, err error)
	send(reply []byte, to netip.Addr)
}, lease shimproto.Lease, resolvConf string, logf func(format string, args ...any),
) error {
	s := server{lease: lease, dns: parseResolv(resolvConf)}
	told := 0
	buf := make([]byte, maxPacket)
	for {
		request, err := client.receive(buf)
		if errors.Is(err, unix.ENETDOWN) {
			continue // once each time the tap goes down; it may come up again
		}
		if err != nil {
			return fmt.Errorf("reading the guest's DHCP requests: %w", err)
		}
		r := s.answerOrNone(request)
		if r == nil {
			continue
		}
		client.send(r.data, r.to)
		if r.left > told { // never often: a guest could fill the log
			told = r.left
			logf("the guest's DHCP client takes replies of %d bytes: the last %d of %d search domains are left out; what they complete needs its full name",
				r.limit, r.left, len(s.dns.search))
		}
	}
}

type server struct {
	lease shimproto.Lease
	dns   resolver
}

// answerOrNone is answer, but a bug in it costs only the answer.
func (s server) answerOrNone(request []byte) (r *reply) {
	defer func() {
		if recover() != nil {
			r = nil
		}
	}()
	return s.answer(request)
}

// answer returns what answers a client's request, or nil.
func (s server) answer(request []byte) (r *reply) {
	if q, ok := parse(request); ok && q.client == s.lease.MAC {
		if kind := s.decide(q); kind != 0 {
			r = s.reply(q, kind)
			r.end()
		}
	}
	return r
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

// reply makes the reply. What a guest needs most comes first: an option that does not fit is left out, and of search
// domains the last ones.
func (s server) reply(q query, kind byte) *reply {
	r := q.reply(kind, s.lease.MTU)
	r.to = s.address()
	if kind == nak || q.broadcast && q.current.IsUnspecified() { // RFC 2131, 4.1
		r.to = everybody
	}
	r.addAddr(optServerID, s.lease.Router)
	r.add(optClientID, q.clientID...) // RFC 6842
	if kind == nak {
		return r
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
	search, count := encodeSearch(s.dns.search, r.fits)
	r.add(optDomainSearch, search...)
	if len(s.dns.search) > 0 {
		r.add(optDomain, []byte(s.dns.search[0])...) // the first of the list, for clients that do not know of lists
	}
	r.left = len(s.dns.search) - count
	return r
}

func (s server) address() netip.Addr { return s.lease.Address.Addr() }

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
