package podnet

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// table is the name of our tables, one of family ip and one of family netdev.
const table = "berth"

// filter replaces our tables by those that w needs, all at once.
func filter(w Wiring, up Uplink) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("opening nftables: %w", err)
	}
	translate(ruleset{conn, replace(conn, nftables.TableFamilyIPv4)}, w, up)
	guard(ruleset{conn, replace(conn, nftables.TableFamilyNetdev)}, w)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("replacing nftables table %s: %w", table, err)
	}
	return nil
}

func replace(conn *nftables.Conn, family nftables.TableFamily) *nftables.Table {
	t := &nftables.Table{Name: table, Family: family}
	conn.AddTable(t) // so that deleting works the first time, too
	conn.DelTable(t)
	return conn.AddTable(t)
}

// translate makes pod and guest one, and keeps the guest from everything else that is in the pod.
func translate(r ruleset, w Wiring, up Uplink) {
	guest, pod := w.Guest.Addr(), up.Address.Addr()

	in := r.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, accept)
	r.rule(in, to(pod), dnat(guest))

	// What begins in the pod, as kubectl port-forward does. A shim that serves something there would be excepted here.
	own := r.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, accept)
	r.rule(own, to(pod), dnat(guest))
	r.rule(own, to(netip.AddrFrom4([4]byte{127, 0, 0, 1})), dnat(guest))

	out := r.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, accept)
	r.rule(out, from(guest), masquerade()) // to itself as well
	r.rule(out, leaving(w.Tap), fromLoopback(), masquerade())

	// A packet that belongs to no connection is not translated. Let through, one of the guest would leave with its
	// private address, and one for the guest would make the pod reset a connection that is not its own.
	forward := r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, drop)
	r.rule(forward, connection(expr.CtStateBitINVALID), verdict(expr.VerdictDrop))
	r.rule(forward, connection(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	r.rule(forward, entering(w.Tap), verdict(expr.VerdictAccept))
	r.rule(forward, leaving(w.Tap), translated(), verdict(expr.VerdictAccept)) // by its private address nobody reaches it

	input := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, accept)
	r.rule(input, connection(expr.CtStateBitINVALID), verdict(expr.VerdictDrop))
	r.rule(input, entering(w.Tap), connection(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	r.rule(input, entering(w.Tap), to(w.Gateway), icmp(icmpEcho), verdict(expr.VerdictAccept))
	r.rule(input, entering(w.Tap), verdict(expr.VerdictDrop)) // DHCP's packet socket comes before

	// A guest that calls its own pod would be told to call itself directly.
	redirects := r.chain("redirects", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, accept)
	r.rule(redirects, leaving(w.Tap), icmp(icmpRedirect), verdict(expr.VerdictDrop))
}

// guard lets nothing in at the tap but what the guest may send under its own addresses.
func guard(r ruleset, w Wiring) {
	guest, nobody := w.Guest.Addr(), netip.IPv4Unspecified()
	c := r.conn.AddChain(&nftables.Chain{
		Name: "ingress", Table: r.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter, Policy: new(drop), Device: w.Tap,
	})
	r.rule(c, differs(expr.PayloadBaseLLHeader, 6, w.MAC), verdict(expr.VerdictDrop))
	r.rule(c, protocol(unix.ETH_P_IP), from(guest), verdict(expr.VerdictAccept))
	r.rule(c, protocol(unix.ETH_P_IP), from(nobody), transport(unix.IPPROTO_UDP), toPort(67), verdict(expr.VerdictAccept))
	arp := concat(protocol(unix.ETH_P_ARP), equals(expr.PayloadBaseNetworkHeader, 8, w.MAC)) // RFC 826: sender's hardware address
	r.rule(c, arp, equals(expr.PayloadBaseNetworkHeader, 14, guest.AsSlice()), verdict(expr.VerdictAccept))
	r.rule(c, arp, equals(expr.PayloadBaseNetworkHeader, 14, nobody.AsSlice()), verdict(expr.VerdictAccept)) // RFC 5227: a probe
}
