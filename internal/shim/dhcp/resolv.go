package dhcp

import (
	"net/netip"
	"strings"
)

// maxServers is how many name servers a guest is told: its resolver asks no more than three.
const maxServers = 3

// resolver is what a resolv.conf(5) says.
type resolver struct {
	servers []netip.Addr // IPv4 only
	search  []string
}

// parseResolv reads a resolv.conf. Servers that the guest cannot reach over
// IPv4, or that are the pod's own loopback, are left out, as are malformed lines.
func parseResolv(text string) (r resolver) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			addr, err := netip.ParseAddr(fields[1])
			if err == nil && addr.Is4() && !addr.IsLoopback() && !addr.IsUnspecified() && len(r.servers) < maxServers {
				r.servers = append(r.servers, addr)
			}
		case "search", "domain": // the last one counts
			r.search = nil
			for _, name := range fields[1:] {
				if name = strings.TrimSuffix(name, "."); isDomain(name) {
					r.search = append(r.search, name)
				}
			}
		}
	}
	return r
}

func isDomain(name string) bool {
	if len(name) > 253 {
		return false
	}
	for label := range strings.SplitSeq(name, ".") {
		odd := func(c rune) bool {
			return c != '-' && c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
		}
		if label == "" || len(label) > 63 || strings.IndexFunc(label, odd) >= 0 {
			return false
		}
	}
	return true
}

// searchOption encodes as many names as fit in one option (RFC 3397), uncompressed.
func searchOption(names []string) []byte {
	var value []byte
	for _, name := range names {
		if len(value)+len(name)+2 > 255 {
			break
		}
		for label := range strings.SplitSeq(name, ".") {
			value = append(append(value, byte(len(label))), label...) //nolint:gosec // at most 63
		}
		value = append(value, 0)
	}
	return value
}
