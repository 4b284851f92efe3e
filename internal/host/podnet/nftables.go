package podnet

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
)

// tableName is that of our tables, one of family ip and one of family netdev.
const tableName = "berth"

// everybody is the address of a broadcast on one's own link.
var everybody = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// replaceTables replaces our tables by those that the interfaces in the list need, all in one transaction.
func replaceTables(conn *nftables.Conn, pod PodInterface, c Config) error {
	had, err := conn.ListTables()
	if err != nil {
		return fmt.Errorf("listing nftables tables: %w", err)
	}
	addRules(emptyTable(conn, had, nftables.TableFamilyIPv4), pod.Address.Addr(), c)
	ingress := emptyTable(conn, had, nftables.TableFamilyNetdev)
	for _, n := range c.Interfaces {
		addIngressRules(ingress, n)
	}
	return fault.Doing(conn.Flush(), "replacing nftables table %s", tableName)
}

// emptyTable makes our table, anew if there is one among all that are there. To delete one costs the kernel some 10 ms,
// and there is none in a new pod.
func emptyTable(conn *nftables.Conn, had []*nftables.Table, family nftables.TableFamily) ruleset {
	t := &nftables.Table{Name: tableName, Family: family}
	if slices.ContainsFunc(had, func(other *nftables.Table) bool { return other.Name == t.Name && other.Family == family }) {
		conn.DelTable(t)
	}
	return ruleset{conn, conn.AddTable(t)}
}

// tapsWithIngressRules returns the names of the taps that have ingress rules now: their chain is named like the tap.
func tapsWithIngressRules(conn *nftables.Conn) (taps []string, err error) {
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyNetdev)
	for _, c := range chains {
		if c.Table.Name == tableName {
			taps = append(taps, c.Name)
		}
	}
	return taps, fault.Doing(err, "listing nftables chains")
}

// addRules makes pod and guest one, and keeps the guest from everything else that is in the pod.
func addRules(r ruleset, pod netip.Addr, c Config) {
	prerouting := r.chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest, accept)
	output := r.chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest, accept)
	postrouting := r.chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource, accept)
	forward := r.chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter, drop)
	input := r.chain("input", nftables.ChainTypeFilter, nftables.ChainHookInput, nftables.ChainPriorityFilter, accept)
	outgoing := r.chain("outgoing", nftables.ChainTypeFilter, nftables.ChainHookOutput, nftables.ChainPriorityFilter, accept)

	if len(c.Interfaces) > 0 {
		guest := c.Interfaces[0].Address.Addr()
		r.rule(prerouting, to(pod), dnat(guest))
		r.rule(output, to(pod), dnat(guest))
		// kubectl port-forward: the runtime calls 127.0.0.1 in the pod, by TCP, for whatever port the user asks. Nothing else
		// that is sent there is the guest's (docs/adr/0012).
		localhost := slices.Concat(to(netip.AddrFrom4([4]byte{127, 0, 0, 1})), transport(unix.IPPROTO_TCP))
		for _, port := range c.ReservedPorts {
			r.rule(output, localhost, toPort(port), verdict(expr.VerdictAccept))
		}
		r.rule(output, localhost, dnat(guest))
	}

	// A packet that belongs to no connection is not translated. Let through, one of the guest would leave with its
	// private address, and one for the guest would make the pod reset a connection that is not its own.
	r.rule(forward, connection(expr.CtStateBitINVALID), verdict(expr.VerdictDrop))
	r.rule(forward, connection(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	r.rule(input, connection(expr.CtStateBitINVALID), verdict(expr.VerdictDrop))

	for _, n := range c.Interfaces {
		r.rule(postrouting, from(n.Address.Addr()), masquerade()) // to itself as well
		r.rule(postrouting, leaving(n.Tap), fromLoopback(), masquerade())

		r.rule(forward, entering(n.Tap), verdict(expr.VerdictAccept))
		r.rule(forward, leaving(n.Tap), translated(), verdict(expr.VerdictAccept)) // by its private address nobody reaches it

		r.rule(input, entering(n.Tap), connection(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
		r.rule(input, entering(n.Tap), to(n.Gateway), icmp(icmpEcho), verdict(expr.VerdictAccept))
		for _, a := range []netip.Addr{n.Gateway, everybody} { // a renewal, and all else
			r.rule(input, entering(n.Tap), to(a), transport(unix.IPPROTO_UDP), toPort(dhcpPort), verdict(expr.VerdictAccept))
		}
		r.rule(input, entering(n.Tap), verdict(expr.VerdictDrop))

		r.rule(outgoing, leaving(n.Tap), transport(unix.IPPROTO_UDP), fromPort(dhcpPort), verdict(expr.VerdictAccept))
		// A guest that calls its own pod would get an ICMP redirect to itself.
		r.rule(outgoing, leaving(n.Tap), icmp(icmpRedirect), verdict(expr.VerdictDrop))
	}

	// Who holds a DHCP socket can have it send and hear by other interfaces, in the name of a port that needs a privilege.
	r.rule(input, transport(unix.IPPROTO_UDP), toPort(dhcpPort), verdict(expr.VerdictDrop))
	r.rule(outgoing, transport(unix.IPPROTO_UDP), fromPort(dhcpPort), verdict(expr.VerdictDrop))
}

// addIngressRules lets nothing in at the tap but what the guest sends from its own addresses.
func addIngressRules(r ruleset, n Interface) {
	guest, nobody := n.Address.Addr(), netip.IPv4Unspecified()
	c := r.conn.AddChain(&nftables.Chain{
		Name: n.Tap, Table: r.table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookIngress,
		Priority: nftables.ChainPriorityFilter, Policy: new(drop), Device: n.Tap,
	})
	r.rule(c, otherMAC(n.MAC), verdict(expr.VerdictDrop))
	r.rule(c, protocol(unix.ETH_P_IP), from(guest), verdict(expr.VerdictAccept))
	r.rule(c, protocol(unix.ETH_P_IP), from(nobody), transport(unix.IPPROTO_UDP), toPort(dhcpPort), verdict(expr.VerdictAccept))
	for _, a := range []netip.Addr{guest, nobody} { // RFC 5227: a probe is from nobody
		r.rule(c, protocol(unix.ETH_P_ARP), senderMAC(n.MAC), senderIP(a), verdict(expr.VerdictAccept))
	}
}
