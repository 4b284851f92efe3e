package dhcp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
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
	mac       shimproto.MAC // chaddr; zero: the guest's
	current   netip.Addr
	requested netip.Addr
	server    netip.Addr
	relay     bool
	broadcast bool
	maxSize   uint16
	clientID  string
}

func (a ask) message() []byte {
	if a.mac == (shimproto.MAC{}) {
		a.mac = testServer().lease.MAC
	}
	r := &reply{data: make([]byte, headerLen), limit: 4000}
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
	r.end()
	return r.data
}

// outcome is what a client makes of a reply.
type outcome struct {
	kind     byte
	to       netip.Addr
	yours    netip.Addr
	lease    uint32
	clientID string
}

func read(t *testing.T, reply *reply) (outcome, map[byte][]byte) {
	t.Helper()
	if reply == nil {
		return outcome{}, nil
	}
	data := reply.data
	if len(data) < 300 || string(data[4:8]) != "xid!" || data[0] != bootReply {
		t.Errorf("odd reply % x", data)
	}
	options := map[byte][]byte{}
	for rest := data[headerLen:]; rest[0] != optEnd; rest = rest[2+int(rest[1]):] {
		options[rest[0]] = append(options[rest[0]], rest[2:2+int(rest[1])]...) // RFC 3396
	}
	o := outcome{kind: options[optMessageType][0], to: reply.to, yours: netip.AddrFrom4([4]byte(data[16:])), clientID: string(options[optClientID])}
	if l := options[optLeaseTime]; l != nil {
		o.lease = binary.BigEndian.Uint32(l)
	}
	return o, options
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		ask  ask
		want outcome
	}{
		"a discovery gets an offer":          {ask{kind: discover}, outcome{kind: offer, to: guest, yours: guest, lease: 3600}},
		"who cannot take unicast yet":        {ask{kind: discover, broadcast: true}, outcome{kind: offer, to: everybody, yours: guest, lease: 3600}},
		"the client's identifier comes back": {ask{kind: discover, clientID: "\x01abc"}, outcome{kind: offer, to: guest, yours: guest, lease: 3600, clientID: "\x01abc"}},
		"a wish for another address":         {ask{kind: discover, requested: other}, outcome{kind: offer, to: guest, yours: guest, lease: 3600}},
		"our offer is taken":                 {ask{kind: request, requested: guest, server: router}, outcome{kind: ack, to: guest, yours: guest, lease: 3600}},
		"after the guest's reboot":           {ask{kind: request, requested: guest}, outcome{kind: ack, to: guest, yours: guest, lease: 3600}},
		"a renewal":                          {ask{kind: request, current: guest}, outcome{kind: ack, to: guest, yours: guest, lease: 3600}},
		"a wrong address":                    {ask{kind: request, requested: other}, outcome{kind: nak, to: everybody, yours: nowhere}},
		"a renewal of a wrong address":       {ask{kind: request, current: other}, outcome{kind: nak, to: everybody, yours: nowhere}},
		"settings without a lease":           {ask{kind: inform, current: guest}, outcome{kind: ack, to: guest, yours: nowhere}},
		"settings for a wrong address":       {ask{kind: inform, current: other}, outcome{}},
		"another server's offer is taken":    {ask{kind: request, requested: other, server: other}, outcome{}},
		"a request for nothing":              {ask{kind: request}, outcome{}},
		"a release":                          {ask{kind: 7, current: guest, server: router}, outcome{}},
		"a server's message":                 {ask{kind: offer}, outcome{}},
		"a stranger":                         {ask{kind: discover, mac: shimproto.MAC{2, 0, 0, 0, 0, 8}}, outcome{}},
		"a relay":                            {ask{kind: discover, relay: true}, outcome{}},
	} {
		got, _ := read(t, testServer().answer(c.ask.message()))
		if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(outcome{}), cmpopts.EquateComparable(netip.Addr{})); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestALeaseTellsAllThatAPodKnows(t *testing.T) {
	_, got := read(t, testServer().answer(ask{kind: request, requested: guest}.message()))
	want := map[byte][]byte{
		optMessageType: {ack}, optServerID: {10, 0, 2, 1}, optLeaseTime: {0, 0, 14, 16}, optRenewalTime: {0, 0, 7, 8}, optRebindTime: {0, 0, 12, 78},
		optMask: {255, 255, 255, 0}, optRouter: {10, 0, 2, 1}, optBroadcast: {10, 0, 2, 255}, optMTU: {1450 >> 8, 1450 & 0xff},
		optDNS: {10, 96, 0, 10}, optHostname: []byte("web"), optDomain: []byte("prod.svc.cluster.local"),
		optDomainSearch: []byte("\x04prod\x03svc\x07cluster\x05local\x00\xc0\x05\xc0\x09"),
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
	for size, count := range map[uint16]int{0: 2, 60: 2, 576: 2, 900: 8, 1500: 10, 9000: 10} {
		reply := s.answer(ask{kind: discover, maxSize: size, clientID: strings.Repeat("c", 100)}.message())
		_, options := read(t, reply)
		if limit := min(max(576, int(size)), s.lease.MTU); len(reply.data)+headers > limit || reply.limit != limit {
			t.Errorf("maximum %d: %d bytes of %d", size, len(reply.data)+headers, reply.limit)
		}
		if options[optRouter] == nil || options[optDNS] == nil || options[optHostname] == nil || (options[optDomain] == nil) == (count == 10) {
			t.Errorf("maximum %d: options %v", size, options)
		}
		got := decodeSearch(t, options[optDomainSearch])
		if diff := cmp.Diff(s.dns.search[:count], got, cmpopts.EquateEmpty()); diff != "" || reply.left != 10-count {
			t.Errorf("maximum %d: %d are left out (-want +got):\n%s", size, reply.left, diff)
		}
	}
}

// TestTheSearchListFits has a pod's search list, with the longest names, for clients that take the least.
func TestTheSearchListFits(t *testing.T) {
	long := func(n int) string { return strings.Repeat("n", n) }
	for name, c := range map[string]struct{ hostname, namespace, more string }{
		"the longest names":            {long(63), long(63), ""},
		"long names in a cloud":        {long(30), long(44), " eu-central-1.compute.internal corp.example.org"},
		"the longest names in a cloud": {long(63), long(63), " eu-central-1.compute.internal corp.example.org"},
		"two domains of a company's":   {long(30), long(26), " infrastructure.emea.example.com platform.engineering.emea.example.com"},
		"the usual":                    {"web", "default", ""},
	} {
		s := testServer()
		s.lease.Hostname = c.hostname
		s.dns = parseResolv("nameserver 10.96.0.10\nsearch " + c.namespace + ".svc.cluster.local svc.cluster.local cluster.local" + c.more)
		reply := s.answer(ask{kind: request, requested: guest, clientID: strings.Repeat("\xff", 19)}.message())
		_, options := read(t, reply)
		if diff := cmp.Diff(s.dns.search, decodeSearch(t, options[optDomainSearch])); diff != "" || reply.left != 0 {
			t.Errorf("%s: %d are left out (-want +got):\n%s", name, reply.left, diff)
		}
		if string(options[optHostname]) != c.hostname || len(reply.data) > 548 {
			t.Errorf("%s: host name %q, %d bytes", name, options[optHostname], len(reply.data))
		}
	}
}

// decodeSearch reads a search list as a client does.
func decodeSearch(t *testing.T, value []byte) (names []string) {
	t.Helper()
	for at := 0; at < len(value); {
		var labels []string
		next := 0
		for i := at; ; {
			n := int(value[i])
			switch {
			case n >= 0xc0:
				to := n&0x3f<<8 | int(value[i+1])
				if to >= i {
					t.Fatalf("a pointer at %d leads to %d in % x", i, to, value)
				}
				next, i = max(next, i+2), to
				continue
			case n == 0:
				next = max(next, i+1)
			default:
				labels = append(labels, string(value[i+1:i+1+n]))
				i += 1 + n
				continue
			}
			break
		}
		names, at = append(names, strings.Join(labels, ".")), next
	}
	return names
}

// TestALongListIsToldOnce: a guest that asks again and again does not fill its log.
func TestALongListIsToldOnce(t *testing.T) {
	client := &script{requests: [][]byte{
		ask{kind: discover, maxSize: 1500}.message(), ask{kind: discover}.message(), {}, []byte("nonsense"), ask{kind: request, requested: guest}.message(),
	}}
	resolv := "search " + strings.Repeat("a", 63) + ".example " + strings.Repeat("b", 63) + ".example " + strings.Repeat("c", 63) + ".example " + strings.Repeat("d", 63) + ".example\n"
	var told []string
	err := serve(client, testServer().lease, resolv, func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) })
	if !errors.Is(err, io.EOF) || len(client.replies) != 3 {
		t.Errorf("%d replies, then %v", len(client.replies), err)
	}
	want := []string{"the guest's DHCP client takes replies of 576 bytes: the last 1 of 4 search domains are left out; what they complete needs its full name"}
	if diff := cmp.Diff(want, told); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// script is a client that sends requests and then is gone.
type script struct{ requests, replies [][]byte }

func (s *script) receive([]byte) ([]byte, error) {
	if len(s.requests) == 0 {
		return nil, io.EOF
	}
	next := s.requests[0]
	s.requests = s.requests[1:]
	return next, nil
}

func (s *script) send(reply []byte, _ netip.Addr) { s.replies = append(s.replies, reply) }

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
		f.Add(a.message())
	}
	s := testServer()
	f.Fuzz(func(t *testing.T, data []byte) {
		before := bytes.Clone(data)
		if a := s.answer(data); a != nil && len(a.data)+headers > s.lease.MTU {
			t.Errorf("%d bytes answer %x", len(a.data), data)
		}
		if !bytes.Equal(data, before) {
			t.Errorf("the request was changed")
		}
	})
}

func FuzzResolv(f *testing.F) {
	f.Add("search a.b\nnameserver 10.0.0.1\n")
	f.Add("search a.b.c b.c c a.b.c d.c c.d " + strings.Repeat("a.", 120) + "b.c\n")
	f.Fuzz(func(t *testing.T, text string) {
		s := server{lease: testServer().lease, dns: parseResolv(text)}
		a := s.answer(ask{kind: discover, maxSize: 1500}.message())
		_, options := read(t, a)
		if diff := cmp.Diff(s.dns.search[:len(s.dns.search)-a.left], decodeSearch(t, options[optDomainSearch]), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", text, diff)
		}
	})
}
