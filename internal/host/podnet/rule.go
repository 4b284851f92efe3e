package podnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The words that nftables.go is written in: each is a part of one rule, like a word of nft(8).

const (
	accept = nftables.ChainPolicyAccept
	drop   = nftables.ChainPolicyDrop

	icmpRedirect = 5 // RFC 792
	icmpEcho     = 8

	statusDNAT = 1 << 5 // IPS_DST_NAT of linux/netfilter/nf_conntrack_common.h
)

type ruleset struct {
	conn  *nftables.Conn
	table *nftables.Table
}

func (r ruleset) chain(
	name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, p nftables.ChainPolicy,
) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: priority, Policy: &p})
}

func (r ruleset) rule(c *nftables.Chain, parts ...[]expr.Any) {
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: slices.Concat(parts...)})
}

// field compares bytes of a packet, from an offset of a header on.
func field(op expr.CmpOp, base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	load := &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))} //nolint:gosec // an address at most
	return []expr.Any{load, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

func network(offset uint32, data []byte) []expr.Any {
	return field(expr.CmpOpEq, expr.PayloadBaseNetworkHeader, offset, data)
}

func transported(offset uint32, data []byte) []expr.Any {
	return field(expr.CmpOpEq, expr.PayloadBaseTransportHeader, offset, data)
}

func meta(key expr.MetaKey, data []byte) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data}}
}

func name(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

func number(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }

func entering(link string) []expr.Any      { return meta(expr.MetaKeyIIFNAME, name(link)) }
func leaving(link string) []expr.Any       { return meta(expr.MetaKeyOIFNAME, name(link)) }
func protocol(ethertype uint16) []expr.Any { return meta(expr.MetaKeyPROTOCOL, number(ethertype)) }
func transport(protocol byte) []expr.Any   { return meta(expr.MetaKeyL4PROTO, []byte{protocol}) }
func from(a netip.Addr) []expr.Any         { return network(12, a.AsSlice()) }
func fromLoopback() []expr.Any             { return network(12, []byte{127}) }
func to(a netip.Addr) []expr.Any           { return network(16, a.AsSlice()) }
func fromPort(port uint16) []expr.Any      { return transported(0, number(port)) }
func toPort(port uint16) []expr.Any        { return transported(2, number(port)) }

func otherMAC(a net.HardwareAddr) []expr.Any {
	return field(expr.CmpOpNeq, expr.PayloadBaseLLHeader, 6, a)
}

func icmp(kind byte) []expr.Any {
	return slices.Concat(transport(unix.IPPROTO_ICMP), transported(0, []byte{kind}))
}

// senderMAC and senderIP are ARP's. RFC 826.
func senderMAC(a net.HardwareAddr) []expr.Any { return network(8, a) }
func senderIP(a netip.Addr) []expr.Any        { return network(14, a.AsSlice()) }

// connection matches a packet whose connection is in one of the states.
func connection(states uint32) []expr.Any { return tracked(expr.CtKeySTATE, states) }

// translated matches a packet whose connection had its destination changed.
func translated() []expr.Any { return tracked(expr.CtKeySTATUS, statusDNAT) }

func tracked(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

func dnat(guest netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: guest.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
