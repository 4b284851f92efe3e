package podnet

import (
	"encoding/binary"
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

func (r ruleset) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority, p nftables.ChainPolicy) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{Name: name, Table: r.table, Type: kind, Hooknum: hook, Priority: priority, Policy: &p})
}

func (r ruleset) rule(c *nftables.Chain, parts ...[]expr.Any) {
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: c, Exprs: concat(parts...)})
}

func concat(parts ...[]expr.Any) []expr.Any { return slices.Concat(parts...) }

func compare(op expr.CmpOp, load expr.Any, data []byte) []expr.Any {
	return []expr.Any{load, &expr.Cmp{Op: op, Register: 1, Data: data}}
}

func payload(base expr.PayloadBase, offset uint32, data []byte) expr.Any {
	return &expr.Payload{DestRegister: 1, Base: base, Offset: offset, Len: uint32(len(data))} //nolint:gosec // an address at most
}

func equals(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	return compare(expr.CmpOpEq, payload(base, offset, data), data)
}

func differs(base expr.PayloadBase, offset uint32, data []byte) []expr.Any {
	return compare(expr.CmpOpNeq, payload(base, offset, data), data)
}

func meta(key expr.MetaKey, data []byte) []expr.Any {
	return compare(expr.CmpOpEq, &expr.Meta{Key: key, Register: 1}, data)
}

func name(s string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, s)
	return b
}

func entering(link string) []expr.Any { return meta(expr.MetaKeyIIFNAME, name(link)) }
func leaving(link string) []expr.Any  { return meta(expr.MetaKeyOIFNAME, name(link)) }

func protocol(ethertype uint16) []expr.Any {
	return meta(expr.MetaKeyPROTOCOL, binary.BigEndian.AppendUint16(nil, ethertype))
}

func transport(protocol byte) []expr.Any { return meta(expr.MetaKeyL4PROTO, []byte{protocol}) }

func from(a netip.Addr) []expr.Any { return equals(expr.PayloadBaseNetworkHeader, 12, a.AsSlice()) }
func to(a netip.Addr) []expr.Any   { return equals(expr.PayloadBaseNetworkHeader, 16, a.AsSlice()) }

func fromLoopback() []expr.Any { return equals(expr.PayloadBaseNetworkHeader, 12, []byte{127}) }

func toPort(port uint16) []expr.Any {
	return equals(expr.PayloadBaseTransportHeader, 2, binary.BigEndian.AppendUint16(nil, port))
}

func fromPort(port uint16) []expr.Any {
	return equals(expr.PayloadBaseTransportHeader, 0, binary.BigEndian.AppendUint16(nil, port))
}

func icmp(kind byte) []expr.Any {
	return concat(transport(unix.IPPROTO_ICMP), equals(expr.PayloadBaseTransportHeader, 0, []byte{kind}))
}

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
