package shimproto

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
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

// handOver is what an agent hands over for a guest with one NIC; change changes its lease.
func handOver(change func(*Lease)) HandOver {
	l := lease()
	change(l)
	return HandOver{InstanceID: "r", Devices: []Device{
		{Kind: KindDHCP, Name: "default", FD: 1, Lease: l}, {Kind: KindConsole, Name: "console", FD: 0},
	}}
}

func same(*Lease) {}

// devices are n devices of an unknown kind.
func devices(n int) (list []Device) {
	for i := range n {
		list = append(list, Device{Kind: "hologram", Name: strconv.Itoa(i), FD: i})
	}
	return list
}

var equateAddresses = cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})

func TestMessagesArriveAsTheyWereSent(t *testing.T) {
	for _, m := range []Message{
		Hello{},
		HandOver{InstanceID: "containerd://0123abc", Devices: []Device{}},
		handOver(same),
		HandOver{InstanceID: "r", Devices: devices(MaxDescriptors)},
		Running{Phase: PhasePaused},
		Acted{},
		Acted{Resets: 1<<64 - 1, NMIs: 7},
		Exit{Code: 137, Reason: "OOMKilled", Message: "over <limit> & \"gone\"\n"},
		State{Minor: 1, Kinds: []Kind{KindConsole}},
		State{Minor: 3, Kinds: []Kind{KindConsole}, InstanceID: "r", ConsoleClosed: true, TerminatingSinceNS: 1},
		State{Minor: 2, Kinds: []Kind{KindGuest}, GuestTools: strings.Repeat("~", MaxGuestTools), ExitText: strings.Repeat(" ", MaxExitText), Resets: 1<<64 - 1, NMIs: 1},
		State{Minor: 7, Kinds: []Kind{"lease", "hologram-2", "console"}},
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
		if diff := cmp.Diff(m, got, equateAddresses); diff != "" {
			t.Errorf("%s (-sent +received):\n%s", data, diff)
		}
	}
}

func TestWhatIsOutOfRangeIsNeitherSentNorTaken(t *testing.T) {
	with := handOver
	of := func(devices ...Device) HandOver { return HandOver{InstanceID: "r", Devices: devices} }
	takes := func(kinds ...Kind) State { return State{Minor: 1, Kinds: kinds} }
	says := func(change func(*State)) State {
		s := takes(KindConsole)
		change(&s)
		return s
	}
	for name, m := range map[string]Message{
		"a hand-over without an instance ID":         HandOver{},
		"an instance ID with a line feed":            HandOver{InstanceID: "a\nb"},
		"an instance ID of 129 characters":           HandOver{InstanceID: strings.Repeat("r", 129)},
		"more devices than descriptors":              of(devices(MaxDescriptors + 1)...),
		"a device without a kind":                    of(Device{Name: "a"}),
		"a device without a name":                    of(Device{Kind: KindConsole}),
		"a device of 33 letters' kind":               of(Device{Kind: Kind(strings.Repeat("k", 33)), Name: "a"}),
		"a device with a name of 64 letters":         of(Device{Kind: KindConsole, Name: strings.Repeat("n", 64)}),
		"a device with an escape in its name":        of(Device{Kind: KindConsole, Name: "\x1b[2J"}),
		"a descriptor below zero":                    of(Device{Kind: KindConsole, Name: "a", FD: -1}),
		"a descriptor beyond the last":               of(Device{Kind: KindConsole, Name: "a", FD: MaxDescriptors}),
		"a lease that leases nothing":                of(Device{Kind: KindDHCP, Name: "a"}),
		"two consoles":                               of(Device{Kind: KindConsole, Name: "a", FD: 0}, Device{Kind: KindConsole, Name: "b", FD: 1}),
		"two ports of the guest program":             of(Device{Kind: KindGuest, Name: "a", FD: 0}, Device{Kind: KindGuest, Name: "b", FD: 1}),
		"two exit ports":                             of(Device{Kind: KindExit, Name: "a", FD: 0}, Device{Kind: KindExit, Name: "b", FD: 1}),
		"two displays":                               of(Device{Kind: KindDisplay, Name: "a", FD: 0}, Device{Kind: KindDisplay, Name: "b", FD: 1}),
		"two devices of one name":                    of(Device{Kind: "hologram", Name: "a", FD: 0}, Device{Kind: "hologram", Name: "a", FD: 1}),
		"two devices with one descriptor":            of(Device{Kind: "hologram", Name: "a"}, Device{Kind: "hologram", Name: "b"}),
		"a kind that is taken twice":                 takes("console", "lease", "console"),
		"an empty kind":                              takes("console", ""),
		"a kind of 33 letters":                       takes(Kind(strings.Repeat("k", 33))),
		"a kind in capitals":                         takes("Console"),
		"a kind with an escape in it":                takes("\x1b[2J"),
		"a kind in other letters":                    takes("kön"),
		"a kind with a space":                        takes("a b"),
		"more kinds than a shim can take":            takes(manyKinds(maxKinds + 1)...),
		"neither a minor version nor kinds":          State{},
		"a minor version without kinds":              State{Minor: 1},
		"kinds without a minor version":              State{Kinds: []Kind{"console"}},
		"a minor version below zero":                 State{Minor: -1, Kinds: []Kind{"console"}},
		"guest tools of 33 characters":               says(func(s *State) { s.GuestTools = strings.Repeat("v", 33) }),
		"guest tools with an escape":                 says(func(s *State) { s.GuestTools = "\x1b[2J" }),
		"guest tools in other letters":               says(func(s *State) { s.GuestTools = "vö" }),
		"an exit text of 65 characters":              says(func(s *State) { s.ExitText = strings.Repeat("3", 65) }),
		"an exit text of two lines":                  says(func(s *State) { s.ExitText = "3\n4" }),
		"an exit text with a delete":                 says(func(s *State) { s.ExitText = "\x7f" }),
		"more resets done than asked for":            says(func(s *State) { s.Resets = 1; s.ResetsDone = 2 }),
		"more NMIs done than asked for":              says(func(s *State) { s.NMIsDone = 1 }),
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
		"a termination before the boot":              says(func(s *State) { s.TerminatingSinceNS = -1 }),
		"a state with an instance ID of odd letters": says(func(s *State) { s.InstanceID = "\x1b[2J" }),
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
		"a negative time":            `{"v":1,"state":{"minor":1,"takes":["console"],"terminatingSinceNS":-5}}`,
		"an instance ID as a number": `{"v":1,"state":{"minor":1,"takes":["console"],"run":5}}`,
		"fewer resets than none":     `{"v":1,"state":{"minor":1,"takes":["console"],"resets":-1}}`,
		"a kind as a number":         `{"v":1,"state":{"minor":1,"takes":[1]}}`,
		"more than 16 KiB":           `{"v":1,"hello":{}}` + strings.Repeat(" ", MaxMessage),
	} {
		if m, err := decode([]byte(data)); err == nil {
			t.Errorf("%s: was taken as %#v", name, m)
		}
	}
}

func manyKinds(n int) (list []Kind) {
	for i := range n {
		list = append(list, Kind("k"+strconv.Itoa(i)))
	}
	return list
}

func TestNewerPeersAreUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		data string
		want Message
	}{
		"a new field":           {`{"v":1,"state":{"minor":1,"takes":["console"],"run":"r","colour":"blue"},"also":[1]}`, State{Minor: 1, Kinds: []Kind{KindConsole}, InstanceID: "r"}},
		"a new kind it takes":   {`{"v":1,"state":{"minor":9,"takes":["hologram","console"]}}`, State{Minor: 9, Kinds: []Kind{"hologram", "console"}}},
		"a new kind of device":  {`{"v":1,"handOver":{"run":"r","devices":[{"kind":"hologram","name":"h","fd":3,"hologram":{"depth":3}}]}}`, HandOver{InstanceID: "r", Devices: []Device{{Kind: "hologram", Name: "h", FD: 3}}}},
		"a new field of a kind": {`{"v":1,"handOver":{"run":"r","devices":[{"kind":"console","name":"c","fd":0,"size":[80,25]}]}}`, HandOver{InstanceID: "r", Devices: []Device{{Kind: KindConsole, Name: "c"}}}},
	} {
		m, err := decode([]byte(c.data))
		if diff := cmp.Diff(c.want, m); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
	}
	if _, err := decode([]byte(`{"v":1,"dance":{}}`)); !errors.Is(err, errUnknown) {
		t.Errorf("a new kind of message: got %v, want %v", err, errUnknown)
	}
	const want = "message is of protocol 2, this program speaks protocol 1"
	for _, data := range []string{`{"v":2,"state":{}}`, `{"v":2,"state":"what a state is there"}`} {
		if _, err := decode([]byte(data)); err == nil || err.Error() != want {
			t.Errorf("%s: got %v, want %q", data, err, want)
		}
	}
}

func TestWhatAShimTakes(t *testing.T) {
	for name, c := range map[string]struct {
		says           State
		console, guest bool
	}{
		"that lists it":     {State{Minor: 1, Kinds: []Kind{"guest", "console"}}, true, true},
		"in another order":  {State{Minor: 1, Kinds: []Kind{"console", "guest"}}, true, true},
		"that does not":     {State{Minor: 1, Kinds: []Kind{"lease"}}, false, false},
		"of a newer number": {State{Minor: 9, Kinds: []Kind{"console"}}, true, false},
	} {
		if console, guest := c.says.Takes(KindConsole), c.says.Takes("guest"); console != c.console || guest != c.guest {
			t.Errorf("a shim %s: takes a console: %v, want %v; another kind: %v, want %v", name, console, c.console, guest, c.guest)
		}
	}
}

func TestTheLargestHandOverFits(t *testing.T) {
	h := HandOver{InstanceID: strings.Repeat("\"", maxInstanceID)}
	for i := range MaxDescriptors {
		l := lease()
		l.Address, l.Router, l.MTU = netip.MustParsePrefix("200.200.200.201/30"), netip.MustParseAddr("200.200.200.202"), 65535
		l.Hostname = strings.Repeat("h", maxHostname)
		h.Devices = append(h.Devices, Device{Kind: KindDHCP, Name: fmt.Sprintf("%063d", i), FD: i, Lease: l})
	}
	data, err := encode(h)
	if err != nil || len(data) > MaxMessage {
		t.Errorf("%d bytes, %v; at most %d", len(data), err, MaxMessage)
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

func TestTerminationMessage(t *testing.T) {
	for want, e := range map[string]Exit{
		"":                             {},
		"PoweredOff":                   {Reason: "PoweredOff"},
		"QEMUFailed: no: such disk":    {Reason: "QEMUFailed", Message: "no: such disk"},
		"the container was not wanted": {Message: "the container was not wanted"},
	} {
		text := e.TerminationMessage()
		if text != want {
			t.Errorf("%+v leaves %q, want %q", e, text, want)
		}
		if reason, message := ParseTerminationMessage(text); e.Reason != "" && (reason != e.Reason || message != e.Message) {
			t.Errorf("%q is taken for %q and %q", text, reason, message)
		}
	}
}

func FuzzMessage(f *testing.F) {
	packets, err := filepath.Glob("testdata/v1.*/*.json")
	if err != nil || len(packets) == 0 {
		f.Fatal(packets, err)
	}
	for _, path := range packets {
		data, err := os.ReadFile(path)
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
		if s, ok := m.(State); ok && len(s.Kinds) > maxKinds {
			t.Errorf("%q takes %d kinds", data, len(s.Kinds))
		}
	})
}
