package dhcp

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

// Message types, RFC 2132, 9.6.
const (
	discover = 1
	offer    = 2
	request  = 3
	ack      = 5
	nak      = 6
	inform   = 8
)

// Options, RFC 2132, and RFC 3397 for the search list.
const (
	optPad          = 0
	optMask         = 1
	optRouter       = 3
	optDNS          = 6
	optHostname     = 12
	optDomain       = 15
	optMTU          = 26
	optBroadcast    = 28
	optRequestedIP  = 50
	optLeaseTime    = 51
	optMessageType  = 53
	optServerID     = 54
	optMaxSize      = 57
	optRenewalTime  = 58
	optRebindTime   = 59
	optClientID     = 61
	optDomainSearch = 119
	optEnd          = 255
)

const (
	headerLen   = 240 // up to and with the magic cookie
	minMessage  = 300 // RFC 1542, 2.1: some clients drop shorter ones
	minDatagram = 576 // RFC 2131, 2: every client takes datagrams of this size, and some drop longer ones
	maxDatagram = 1500
	maxOption   = 255
	headers     = 28 // of IPv4 and UDP, in bytes
	magicCookie = 0x63825363

	bootRequest   = 1
	bootReply     = 2
	etherHardware = 1
	flagBroadcast = 0x8000
)

// query is what a client sends, as far as it matters.
type query struct {
	kind      byte
	header    [44]byte   // op to chaddr, which a reply mostly repeats
	current   netip.Addr // ciaddr; 0.0.0.0: none
	requested netip.Addr // option 50; invalid: none
	server    netip.Addr // option 54; invalid: none
	clientID  []byte
	maxSize   int // of the reply's datagram, in bytes
	broadcast bool
	client    shimproto.MAC
}

// parse reads a client's message. Messages through relays are not ours to answer.
func parse(data []byte) (q query, ok bool) {
	if len(data) < headerLen || data[0] != bootRequest || data[1] != etherHardware || data[2] != 6 ||
		binary.BigEndian.Uint32(data[24:]) != 0 || binary.BigEndian.Uint32(data[236:]) != magicCookie {
		return q, false
	}
	q.header = [44]byte(data)
	q.current = netip.AddrFrom4([4]byte(data[12:]))
	q.broadcast = binary.BigEndian.Uint16(data[10:])&flagBroadcast != 0
	q.client = shimproto.MAC(data[28:34])
	q.maxSize = minDatagram
	for rest := data[headerLen:]; len(rest) > 0 && rest[0] != optEnd; {
		if rest[0] == optPad {
			rest = rest[1:]
			continue
		}
		if len(rest) < 2 || len(rest) < 2+int(rest[1]) {
			return q, false
		}
		code, value := rest[0], rest[2:2+int(rest[1])]
		rest = rest[2+len(value):]
		switch {
		case code == optMessageType && len(value) == 1:
			q.kind = value[0]
		case code == optRequestedIP && len(value) == 4:
			q.requested = netip.AddrFrom4([4]byte(value))
		case code == optServerID && len(value) == 4:
			q.server = netip.AddrFrom4([4]byte(value))
		case code == optMaxSize && len(value) == 2:
			q.maxSize = min(max(int(binary.BigEndian.Uint16(value)), minDatagram), maxDatagram)
		case code == optClientID:
			q.clientID = value
		}
	}
	return q, q.kind != 0
}

// reply is a message in the making.
type reply struct {
	data  []byte
	limit int        // of the datagram, in bytes
	to    netip.Addr // where it goes
	left  int        // how many search domains are left out, because of the limit
}

// reply begins the reply to q on a link whose datagrams have at most mtu bytes.
func (q query) reply(kind byte, mtu int) *reply {
	r := &reply{data: make([]byte, headerLen, minDatagram), limit: min(q.maxSize, mtu)}
	copy(r.data, q.header[:])
	r.data[0], r.data[3] = bootReply, 0 // hops
	clear(r.data[8:10])                 // secs
	clear(r.data[12:28])                // all addresses
	binary.BigEndian.PutUint32(r.data[236:], magicCookie)
	r.add(optMessageType, kind)
	return r
}

// add appends an option, in parts if it is longer than one can be (RFC 3396), or leaves it out if it does not fit.
func (r *reply) add(code byte, value ...byte) {
	if !r.fits(len(value)) {
		return
	}
	for part := range slices.Chunk(value, maxOption) {
		r.data = append(append(r.data, code, byte(len(part))), part...) //nolint:gosec // at most maxOption
	}
}

// fits: an option of so many bytes can be added, and the end after it.
func (r *reply) fits(size int) bool {
	parts := (size + maxOption - 1) / maxOption
	return headers+len(r.data)+2*parts+size+1 <= r.limit
}

func (r *reply) addUint32(code byte, value uint32) {
	r.add(code, binary.BigEndian.AppendUint32(nil, value)...)
}

func (r *reply) addAddr(code byte, addr netip.Addr) { r.add(code, addr.AsSlice()...) }

// end makes the message whole.
func (r *reply) end() {
	r.data = append(r.data, optEnd)
	r.data = append(r.data, make([]byte, max(0, minMessage-len(r.data)))...)
}
