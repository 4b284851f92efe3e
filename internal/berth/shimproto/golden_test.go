package shimproto

import (
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const golden = "containerd://0123abc"

// TestPackets reads and writes the packets in testdata. Each is as a version wrote it that upgrades begin with, and never
// changes.
func TestPackets(t *testing.T) {
	all := []Kind{KindConsole, KindDHCP, KindGuest, KindExit, KindDisplay}
	console := Device{Kind: KindConsole, Name: "console", FD: 0}
	of := func(more ...Device) HandOver {
		return HandOver{InstanceID: golden, Devices: append([]Device{console}, more...)}
	}
	kernel := of(Device{Kind: KindGuest, Name: "guest", FD: 1})
	kernel.DirectKernel = true
	for path, want := range map[string]Message{
		"v1.3/hello":            Hello{},
		"v1.3/running":          Running{Phase: PhaseRunning},
		"v1.3/running-reset":    Running{Phase: PhaseRunning, LastResetNS: 1234567890123},
		"v1.3/paused":           Running{Phase: PhasePaused},
		"v1.3/acted":            Acted{Resets: 2, NMIs: 1},
		"v1.3/exit":             Exit{Code: 137, Reason: "OOMKilled", Message: "over <limit> & \"gone\"\n"},
		"v1.3/exit-zero":        Exit{},
		"v1.3/hand-over":        of(Device{Kind: KindGuest, Name: "guest", FD: 1}, Device{Kind: KindExit, Name: "exit", FD: 2}, Device{Kind: KindDisplay, Name: "display", FD: 3}),
		"v1.3/hand-over-dhcp":   of(Device{Kind: KindDHCP, Name: "default", FD: 1, Lease: lease()}),
		"v1.3/hand-over-kernel": kernel,
		"v1.3/state-new":        State{Minor: 3, Kinds: all},
		"v1.3/state-full": State{
			Minor: 3, Kinds: all,
			InstanceID: golden, ConsoleClosed: true, TerminatingSinceNS: 1234567890123, RunningSinceNS: 987654321,
			GuestTools: "v0.2.0", ExitText: "3", Resets: 3, NMIs: 1, ResetsDone: 2, NMIsDone: 1,
		},
	} {
		t.Run(path, func(t *testing.T) {
			data, err := os.ReadFile("testdata/" + path + ".json")
			if err != nil {
				t.Fatal(err)
			}
			got, err := decode(data)
			if diff := cmp.Diff(want, got, equateAddresses); diff != "" || err != nil {
				t.Errorf("reading it: %v (-want +got):\n%s", err, diff)
			}
			again, err := encode(want)
			if diff := cmp.Diff(string(data), string(again)); diff != "" || err != nil {
				t.Errorf("writing it: %v (-want +got):\n%s", err, diff)
			}
		})
	}
}
