package shimproto

import (
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const golden = "containerd://0123abc"

// kindLease is what agents handed over before KindDHCP, and shims took for longer: a kind that nobody knows any more.
const kindLease Kind = "lease"

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile("testdata/" + path + ".json")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestPackets reads and writes the packets in testdata. Each is as the version wrote it that brought it, and never changes.
// Of 1.0 is left what is said as then.
func TestPackets(t *testing.T) {
	l := lease()
	one := HandOver{InstanceID: golden, Devices: []Device{{Kind: KindConsole, Name: "console", FD: 0}}}
	two := HandOver{InstanceID: golden, Devices: append(one.Devices[:1:1], Device{Kind: kindLease, Name: "lease", FD: 1, Lease: l})}
	more := HandOver{InstanceID: golden, Devices: append(two.Devices[:2:2], Device{Kind: kindLease, Name: "second", FD: 2, Lease: &Lease{
		MAC: MAC{0x02, 0xab, 3, 4, 5, 7}, Address: netip.MustParsePrefix("10.0.3.2/24"), Router: netip.MustParseAddr("10.0.3.1"), MTU: 9000,
	}})}
	for path, c := range map[string]struct {
		minor int
		want  Message
	}{
		"v1.0/hello":          {0, Hello{}},
		"v1.0/running":        {0, Running{Phase: PhaseRunning}},
		"v1.0/paused":         {0, Running{Phase: PhasePaused}},
		"v1.0/exit":           {0, Exit{Code: 137, Reason: "OOMKilled", Message: "over <limit> & \"gone\"\n"}},
		"v1.0/exit-zero":      {0, Exit{}},
		"v1.0/state-new":      {0, State{}},
		"v1.0/state-attached": {0, State{InstanceID: golden}},
		"v1.0/state-full":     {0, State{InstanceID: golden, ConsoleClosed: true, TerminatingSinceNS: 1234567890123, RunningSinceNS: 987654321}},
		"v1.1/hand-over":      {1, more},
		"v1.1/hand-over-dhcp": {1, HandOver{InstanceID: golden, Devices: append(one.Devices[:1:1], Device{Kind: KindDHCP, Name: "default", FD: 1, Lease: l})}},
		"v1.1/state-dhcp":     {1, State{Minor: 1, Kinds: []Kind{KindConsole, KindDHCP, kindLease}}},
		"v1.1/state-new":      {1, State{Minor: 1, Kinds: []Kind{KindConsole, kindLease}}},
		"v1.1/state-full": {1, State{
			Minor: 1, Kinds: []Kind{KindConsole, kindLease},
			InstanceID: golden, ConsoleClosed: true, TerminatingSinceNS: 1234567890123, RunningSinceNS: 987654321,
		}},
		"v1.2/hand-over": {2, HandOver{InstanceID: golden, Devices: append(one.Devices[:1:1],
			Device{Kind: KindGuest, Name: "guest", FD: 1}, Device{Kind: KindExit, Name: "exit", FD: 2}, Device{Kind: KindDisplay, Name: "display", FD: 3})}},
		"v1.2/acted":     {2, Acted{Resets: 2, NMIs: 1}},
		"v1.2/state-new": {2, State{Minor: 2, Kinds: []Kind{KindConsole, KindDHCP, kindLease, KindGuest, KindExit, KindDisplay}}},
		"v1.2/state-full": {2, State{
			Minor: 2, Kinds: []Kind{KindConsole, kindLease},
			InstanceID: golden, ConsoleClosed: true, TerminatingSinceNS: 1234567890123, RunningSinceNS: 987654321,
			GuestTools: "v0.2.0", ExitText: "3", Resets: 3, NMIs: 1, ResetsDone: 2, NMIsDone: 1,
		}},
		"v1.3/hand-over": {3, HandOver{InstanceID: golden, Devices: append(one.Devices[:1:1], Device{Kind: KindGuest, Name: "guest", FD: 1}), DirectKernel: true}},
		"v1.3/running":   {3, Running{Phase: PhaseRunning, LastResetNS: 1234567890123}},
		"v1.3/state-new": {3, State{Minor: 3, Kinds: []Kind{KindConsole, KindDHCP, kindLease, KindGuest, KindExit, KindDisplay}}},
	} {
		t.Run(path, func(t *testing.T) {
			data := read(t, path)
			got, err := decode(data)
			if diff := cmp.Diff(c.want, got, equateAddresses); diff != "" || err != nil {
				t.Errorf("reading it: %v (-want +got):\n%s", err, diff)
			}
			again, err := encode(c.want, c.minor)
			if diff := cmp.Diff(string(data), string(again)); diff != "" || err != nil {
				t.Errorf("writing it: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}

// TestOlderAgentsReadTheStateOfToday: such an agent skips fields that it does not know, and finds all others as they were.
func TestOlderAgentsReadTheStateOfToday(t *testing.T) {
	fields := func(path string) map[string]any {
		var p map[string]map[string]any
		data := read(t, path)
		if err := json.Unmarshal(append([]byte(`{"v":{},`), data[len(`{"v":1,`):]...), &p); err != nil {
			t.Fatal(err)
		}
		return p["state"]
	}
	added := []string{"guestTools", "exitText", "resets", "nmis", "resetsDone", "nmisDone"}
	for old, unknown := range map[string][]string{"v1.0": append(added, "minor", "takes"), "v1.1": append(added, "minor")} {
		for _, name := range []string{"state-full", "state-new"} {
			want, today := fields(old+"/"+name), fields("v1.2/"+name)
			for _, field := range unknown {
				delete(want, field)
				delete(today, field)
			}
			if name == "state-new" { // each version takes more
				delete(want, "takes")
				delete(today, "takes")
			}
			if diff := cmp.Diff(want, today); diff != "" {
				t.Errorf("%s of %s (-then +today):\n%s", name, old, diff)
			}
		}
	}
}

func TestOlderShimsAreToldOfNoActions(t *testing.T) {
	for minor := range 2 {
		if data, err := encode(Acted{Resets: 1}, minor); err == nil {
			t.Errorf("for a shim of protocol 1.%d it became %s", minor, data)
		}
	}
}
