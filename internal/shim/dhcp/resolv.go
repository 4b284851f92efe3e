package dhcp

import (
	"encoding/binary"
	"net/netip"
	"strings"
)

// maxServers is how many name servers the lease has: its resolver asks no more than three.
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
	const letters = "-_0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, letters) != "" {
			return false
		}
	}
	return len(name) <= 253
}

// encodeSearch encodes names as RFC 3397 has it, each ending like an earlier one as RFC 1035 compresses it: as many, from
// the first, as fit.
func encodeSearch(names []string, fits func(size int) bool) (value []byte, count int) {
	const pointer, maxOffset = 0xc000, 0x3fff
	at := map[string]int{} // where in value a name, or the end of one, begins
	for _, name := range names {
		encoded := value
		for rest := name; ; {
			offset, known := at[rest]
			if known {
				encoded = binary.BigEndian.AppendUint16(encoded, uint16(pointer|offset)) //nolint:gosec // at most 16 bits
				break
			}
			if len(encoded) <= maxOffset {
				at[rest] = len(encoded)
			}
			label, end, more := strings.Cut(rest, ".")
			encoded = append(append(encoded, byte(len(label))), label...) //nolint:gosec // at most 63
			if !more {
				encoded = append(encoded, 0)
				break
			}
			rest = end
		}
		if !fits(len(encoded)) {
			return value, count
		}
		value, count = encoded, count+1
	}
	return value, count
}
