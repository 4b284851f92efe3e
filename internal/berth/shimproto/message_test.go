package shimproto

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

func lease() *Lease {
	return &Lease{
		MAC: MAC{0x02, 0xab, 3, 4, 5, 6}, Address: netip.MustParsePrefix("10.0.2.2/24"),
		Router: netip.MustParseAddr("10.0.2.1"), MTU: 1450, Hostname: "web-0.prod",
	}
}

func TestMessagesArriveAsTheyWereSent(t *testing.T) {
	for _, m := range []Message{
		Hello{},
		Attach{InstanceID: "containerd://0123abc"},
		Attach{InstanceID: "r", Lease: lease()},
		Running{Phase: PhasePaused},
		Exit{Code: 137, Reason: "OOMKilled", Message: "over <limit> & \"gone\"\n"},
		State{},
		State{InstanceID: "r", ConsoleClosed: true, TerminatingSinceNS: 1},
	} {
		data, err := encode(m)
		if err != nil {
			t.Errorf("encoding %#v: %v", m, err)
			continue
		}
		got, err := decode(data)
		if err != nil {
			t.Errorf("decoding %s: %v", data, err)
		}
		if diff := cmp.Diff(m, got, cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})); diff != "" {
			t.Errorf("%s (-sent +received):\n%s", data, diff)
		}
	}
}

func TestWhatIsOutOfRangeIsNeitherSentNorTaken(t *testing.T) {
	with := func(change func(*Lease)) Attach {
		n := lease()
		change(n)
		return Attach{InstanceID: "r", Lease: n}
	}
	for name, m := range map[string]Message{
		"an attach without an instance ID":           Attach{},
		"an instance ID with a line feed":            Attach{InstanceID: "a\nb"},
		"an instance ID of 129 characters":           Attach{InstanceID: strings.Repeat("r", 129)},
		"an IPv6 address":                            with(func(n *Lease) { n.Address = netip.MustParsePrefix("fd00::2/64") }),
		"an address without room":                    with(func(n *Lease) { n.Address = netip.MustParsePrefix("10.0.2.2/31") }),
		"a router elsewhere":                         with(func(n *Lease) { n.Router = netip.MustParseAddr("10.0.3.1") }),
		"a router at the guest's address":            with(func(n *Lease) { n.Router = netip.MustParseAddr("10.0.2.2") }),
		"no router":                                  with(func(n *Lease) { n.Router = netip.Addr{} }),
		"an MTU below every host's":                  with(func(n *Lease) { n.MTU = 575 }),
		"an MTU beyond 16 bits":                      with(func(n *Lease) { n.MTU = 65536 }),
		"a host name with a space":                   with(func(n *Lease) { n.Hostname = "a b" }),
		"a host name with a letter of 2 B":           with(func(n *Lease) { n.Hostname = "ä" }),
		"a phase that does not exist":                Running{Phase: "flying"},
		"an exit code of 256":                        Exit{Code: 256},
		"an exit code below zero":                    Exit{Code: -1},
		"a termination before the boot":              State{TerminatingSinceNS: -1},
		"a state with an instance ID of odd letters": State{InstanceID: "\x1b[2J"},
	} {
		if _, err := encode(m); err == nil {
			t.Errorf("%s: was encoded", name)
		}
	}
	for name, data := range map[string]string{
		"no JSON":                    "hello",
		"no version":                 `{"hello":{}}`,
		"another version":            `{"v":2,"hello":{}}`,
		"a MAC of five bytes":        `{"v":1,"attach":{"run":"r","nic":{"mac":"02:00:00:00:00"}}}`,
		"a MAC of strange form":      `{"v":1,"attach":{"run":"r","nic":{"mac":"02:00:00:00:0:00"}}}`,
		"a negative time":            `{"v":1,"state":{"terminatingSinceNS":-5}}`,
		"an instance ID as a number": `{"v":1,"state":{"run":5}}`,
		"more than 16 KiB":           `{"v":1,"hello":{}}` + strings.Repeat(" ", MaxMessage),
	} {
		if m, err := decode([]byte(data)); err == nil {
			t.Errorf("%s: was taken as %#v", name, m)
		}
	}
}

func TestNewerPeersAreUnderstood(t *testing.T) {
	m, err := decode([]byte(`{"v":1,"state":{"run":"r","colour":"blue"},"also":[1]}`))
	if want := (State{InstanceID: "r"}); err != nil || m != want {
		t.Errorf("a new field: got %#v, %v; want %#v", m, err, want)
	}
	if _, err := decode([]byte(`{"v":1,"dance":{}}`)); !errors.Is(err, errUnknown) {
		t.Errorf("a new kind: got %v, want %v", err, errUnknown)
	}
}

func TestAnExitAlwaysFits(t *testing.T) {
	for _, message := range []string{
		strings.Repeat("<", 100_000), strings.Repeat("\x00\"\n", 50_000), strings.Repeat("\xff", 100_000),
		strings.Repeat("\u2028", 50_000), strings.Repeat("é", MaxExitMessage), "\x1b[31mred\u009b",
	} {
		data, err := encode(Exit{Message: message, Reason: message})
		if err != nil || len(data) > MaxMessage {
			t.Fatalf("%.10q: %d bytes, %v", message, len(data), err)
		}
		m, err := decode(data)
		if err != nil {
			t.Fatalf("%.10q: %v", message, err)
		}
		if e := m.(Exit); !utf8.ValidString(e.Message) || strings.ContainsAny(e.Message, "\x00\x1b\u009b") {
			t.Errorf("%.10q became %.20q", message, e.Message)
		}
	}
}

func FuzzMessage(f *testing.F) {
	for _, m := range []Message{Hello{}, Attach{InstanceID: "r", Lease: lease()}, Running{Phase: PhaseRunning}, Exit{Code: 3, Message: "x"}, State{InstanceID: "r", TerminatingSinceNS: 9}} {
		data, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decode(data)
		if err != nil {
			return
		}
		again, err := encode(m)
		if err != nil {
			t.Fatalf("%q was taken as %#v, which is not valid: %v", data, m, err)
		}
		if len(again) > MaxMessage {
			t.Errorf("%q grew to %d bytes", data, len(again))
		}
	})
}
