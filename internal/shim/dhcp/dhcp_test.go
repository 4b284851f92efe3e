package dhcp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

var (
	guest   = netip.MustParseAddr("10.0.2.2")
	router  = netip.MustParseAddr("10.0.2.1")
	nowhere = netip.AddrFrom4([4]byte{})
	other   = netip.MustParseAddr("10.0.2.9")
	all     = netip.AddrFrom4([4]byte{255, 255, 255, 255})
)

func testServer() server {
	return server{
		lease: shimproto.Lease{
			MAC: shimproto.MAC{2, 0, 0, 0, 0, 7}, Address: netip.PrefixFrom(guest, 24), Router: router, MTU: 1450, Hostname: "web",
		},
		dns: parseResolv("search prod.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"),
	}
}

// ask is a client's request.
type ask struct {
	kind      byte
	mac       shimproto.MAC // chaddr, and the frame's source; zero: the guest's
	current   netip.Addr
	requested netip.Addr
	server    netip.Addr
	relay     bool
	broadcast bool
	maxSize   uint16
	clientID  string
}

func (a ask) frame() []byte {
	if a.mac == (shimproto.MAC{}) {
		a.mac = testServer().lease.MAC
	}
	r := &reply{data: make([]byte, fixedLen), limit: 4000}
	r.data[0], r.data[1], r.data[2] = bootRequest, etherHardware, 6
	copy(r.data[4:], "xid!")
	if a.broadcast {
		r.data[10] = 0x80
	}
	if a.current.IsValid() {
		copy(r.data[12:], a.current.AsSlice())
	}
	if a.relay {
		r.data[24] = 10
	}
	copy(r.data[28:], a.mac[:])
	binary.BigEndian.PutUint32(r.data[236:], magicCookie)
	r.add(optMessageType, a.kind)
	for code, addr := range map[byte]netip.Addr{optRequestedIP: a.requested, optServerID: a.server} {
		if addr.IsValid() {
			r.addAddr(code, addr)
		}
	}
	if a.maxSize > 0 {
		r.add(optMaxSize, binary.BigEndian.AppendUint16(nil, a.maxSize)...)
	}
	r.add(optClientID, []byte(a.clientID)...)
	f := envelope{fromMAC: a.mac, toMAC: broadcastMAC, from: nowhere, to: all}.frame(r.bytes())
	binary.BigEndian.PutUint16(f[etherLen+ipLen:], clientPort)
	binary.BigEndian.PutUint16(f[etherLen+ipLen+2:], serverPort)
	binary.BigEndian.PutUint16(f[etherLen+ipLen+6:], 0xbad) // as a guest with checksum offload sends it
	return f
}

// answer is what a client makes of a reply.
type answer struct {
	kind     byte
	toMAC    shimproto.MAC
	to       netip.Addr
	yours    netip.Addr
	lease    uint32
	clientID string
}

func read(t *testing.T, frame []byte) (answer, map[byte][]byte) {
	t.Helper()
	if frame == nil {
		return answer{}, nil
	}
	ip := frame[etherLen:]
	if s := sum(0, ip[:ipLen]); s != 0xffff {
		t.Errorf("IP checksum: %#x", s)
	}
	if s := sum(sum(uint32(protoUDP)+uint32(len(ip)-ipLen), ip[12:20]), ip[ipLen:]); s != 0xffff {
		t.Errorf("UDP checksum: %#x", s)
	}
	data := frame[headLen:]
	if len(data) < 300 || string(data[4:8]) != "xid!" || data[0] != bootReply {
		t.Errorf("odd reply % x", data)
	}
	options := map[byte][]byte{}
	for rest := data[fixedLen:]; rest[0] != optEnd; rest = rest[2+rest[1]:] {
		options[rest[0]] = rest[2 : 2+rest[1]]
	}
	a := answer{
		kind: options[optMessageType][0], toMAC: shimproto.MAC(frame), to: netip.AddrFrom4([4]byte(ip[16:])),
		yours: netip.AddrFrom4([4]byte(data[16:])), clientID: string(options[optClientID]),
	}
	if l := options[optLeaseTime]; l != nil {
		a.lease = binary.BigEndian.Uint32(l)
	}
	return a, options
}

func TestAnswers(t *testing.T) {
	mac := testServer().lease.MAC
	for name, c := range map[string]struct {
		ask  ask
		want answer
	}{
		"a discovery gets an offer":          {ask{kind: discover}, answer{kind: offer, toMAC: mac, to: guest, yours: guest, lease: 3600}},
		"who cannot take unicast yet":        {ask{kind: discover, broadcast: true}, answer{kind: offer, toMAC: broadcastMAC, to: all, yours: guest, lease: 3600}},
		"the client's identifier comes back": {ask{kind: discover, clientID: "\x01abc"}, answer{kind: offer, toMAC: mac, to: guest, yours: guest, lease: 3600, clientID: "\x01abc"}},
		"a wish for another address":         {ask{kind: discover, requested: other}, answer{kind: offer, toMAC: mac, to: guest, yours: guest, lease: 3600}},
		"our offer is taken":                 {ask{kind: request, requested: guest, server: router}, answer{kind: ack, toMAC: mac, to: guest, yours: guest, lease: 3600}},
		"after the guest's reboot":           {ask{kind: request, requested: guest}, answer{kind: ack, toMAC: mac, to: guest, yours: guest, lease: 3600}},
		"a renewal":                          {ask{kind: request, current: guest}, answer{kind: ack, toMAC: mac, to: guest, yours: guest, lease: 3600}},
		"a wrong address":                    {ask{kind: request, requested: other}, answer{kind: nak, toMAC: broadcastMAC, to: all, yours: nowhere}},
		"a renewal of a wrong address":       {ask{kind: request, current: other}, answer{kind: nak, toMAC: broadcastMAC, to: all, yours: nowhere}},
		"settings without a lease":           {ask{kind: inform, current: guest}, answer{kind: ack, toMAC: mac, to: guest, yours: nowhere}},
		"settings for a wrong address":       {ask{kind: inform, current: other}, answer{}},
		"another server's offer is taken":    {ask{kind: request, requested: other, server: other}, answer{}},
		"a request for nothing":              {ask{kind: request}, answer{}},
		"a release":                          {ask{kind: 7, current: guest, server: router}, answer{}},
		"a server's message":                 {ask{kind: offer}, answer{}},
		"a stranger":                         {ask{kind: discover, mac: shimproto.MAC{2, 0, 0, 0, 0, 8}}, answer{}},
		"a relay":                            {ask{kind: discover, relay: true}, answer{}},
	} {
		got, _ := read(t, testServer().answer(c.ask.frame()))
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(answer{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestALeaseTellsAllThatAPodKnows(t *testing.T) {
	_, got := read(t, testServer().answer(ask{kind: request, requested: guest}.frame()))
	want := map[byte][]byte{
		optMessageType: {ack}, optServerID: {10, 0, 2, 1}, optLeaseTime: {0, 0, 14, 16}, optRenewalTime: {0, 0, 7, 8}, optRebindTime: {0, 0, 12, 78},
		optMask: {255, 255, 255, 0}, optRouter: {10, 0, 2, 1}, optBroadcast: {10, 0, 2, 255}, optMTU: {1450 >> 8, 1450 & 0xff},
		optDNS: {10, 96, 0, 10}, optHostname: []byte("web"), optDomain: []byte("prod.svc.cluster.local"),
		optDomainSearch: []byte("\x04prod\x03svc\x07cluster\x05local\x00\x03svc\x07cluster\x05local\x00\x07cluster\x05local\x00"),
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestALongReplyKeepsWhatMattersAndItsSize(t *testing.T) {
	s := testServer()
	s.dns.search = nil
	for _, c := range "abcdefghij" {
		s.dns.search = append(s.dns.search, strings.Repeat(string(c), 50)+".example")
	}
	for _, size := range []uint16{0, 60, 576, 1500} {
		frame := s.answer(ask{kind: discover, maxSize: size, clientID: strings.Repeat("c", 100)}.frame())
		_, options := read(t, frame)
		if limit := max(576, int(size)); len(frame)-etherLen > limit {
			t.Errorf("maximum %d: %d bytes", size, len(frame)-etherLen)
		}
		if options[optRouter] == nil || options[optDNS] == nil || options[optDomain] == nil {
			t.Errorf("maximum %d: options %v", size, options)
		}
	}
}

func TestResolv(t *testing.T) {
	long := strings.Repeat("a", 64)
	for name, c := range map[string]struct {
		text string
		want resolver
	}{
		"empty":                              {"", resolver{}},
		"comments and options":               {"# nameserver 1.1.1.1\n;x\noptions ndots:5\n", resolver{}},
		"tabs, no last line feed":            {"search\ta.b  c\nnameserver\t10.0.0.1", resolver{[]netip.Addr{netip.MustParseAddr("10.0.0.1")}, []string{"a.b", "c"}}},
		"the last search counts, dot or not": {"domain x\nsearch a.\n", resolver{nil, []string{"a"}}},
		"IPv6, loopback and nonsense":        {"nameserver fd00::1\nnameserver 127.0.0.53\nnameserver 0.0.0.0\nnameserver x\nnameserver\n", resolver{}},
		"no more than three servers":         {strings.Repeat("nameserver 10.0.0.1\n", 4), resolver{servers: []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.1")}}},
		"names that no option can carry":     {"search . .. a..b " + long + " ok a$b " + strings.Repeat("a.", 130) + "a\n", resolver{nil, []string{"ok"}}},
	} {
		if diff := cmp.Diff(c.want, parseResolv(c.text), cmp.AllowUnexported(resolver{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func FuzzAnswer(f *testing.F) {
	for _, a := range []ask{{kind: discover}, {kind: request, requested: other, maxSize: 600}, {kind: inform, current: guest, clientID: "abc"}} {
		f.Add(a.frame())
		f.Add(a.frame()[headLen:]) // what is wrapped below
	}
	s := testServer()
	f.Fuzz(func(t *testing.T, data []byte) {
		wrapped := envelope{fromMAC: s.lease.MAC, from: nowhere, to: all}.frame(data)
		binary.BigEndian.PutUint16(wrapped[etherLen+ipLen+2:], serverPort)
		for _, frame := range [][]byte{data, wrapped} {
			before := bytes.Clone(frame)
			if reply := s.answer(frame); len(reply) > etherLen+longest {
				t.Errorf("%d bytes answer %x", len(reply), frame)
			}
			if !bytes.Equal(frame, before) {
				t.Errorf("the request was changed")
			}
		}
	})
}

func FuzzResolv(f *testing.F) {
	f.Add("search a.b\nnameserver 10.0.0.1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if r := parseResolv(text); len(searchOption(r.search)) > 255 {
			t.Errorf("%q makes an option that is too long", text)
		}
	})
}
