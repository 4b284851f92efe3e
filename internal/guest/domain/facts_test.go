package domain

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// seen is what others see of Facts.
var seen = cmpopts.IgnoreUnexported(Facts{}, LiveDisk{})

func TestParseFacts(t *testing.T) {
	for name, want := range map[string]Facts{
		"live-ours": {
			Name:           "ns_a",
			Identity:       &Identity{Namespace: "ns", Name: "a", VM: "6ba7b810-9dad-41d1-80b4-00c04fd430c1", Berth: "b", Record: `{"recordVersion":1,"spec":{"cpu":{"cores":2}}}`},
			Hardware:       Hardware{Layout: 2, Machine: "pc-q35-7.2"},
			AgentConnected: true, AgentPTY: 3, Tools: true,
			Disks: []LiveDisk{{Name: "root", Alias: "ua-root", Target: "vda", Bus: v1alpha1.BusVirtio, Path: "/disks/root.qcow2"}},
		},
		"live-foreign": {Name: "old <box>", AgentPTY: -1},
	} {
		t.Run(name, func(t *testing.T) {
			doc, err := os.ReadFile(filepath.Join("testdata", name+".xml"))
			if err != nil {
				t.Fatal(err)
			}
			got, err := ParseFacts(string(doc))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, seen); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseFactsReadsHardware(t *testing.T) {
	for attributes, want := range map[string]Hardware{
		``:                                 {Layout: -1},
		`machine="pc-q35-7.2"`:             {Layout: -1, Machine: "pc-q35-7.2"},
		`layout="2" machine="pc-q35-7.2"`:  {Layout: 2, Machine: "pc-q35-7.2"},
		`layout="12" machine="q36" x="y"`:  {Layout: 12, Machine: "q36"}, // a newer Berth's
		`layout="flat" machine="pc-q35-8"`: {Layout: -1, Machine: "pc-q35-8"},
	} {
		facts, err := ParseFacts(`<domain><metadata><b:guest xmlns:b="https://berth.dev/domain/v1" vm="a" ` + attributes + `/></metadata></domain>`)
		if err != nil || facts.Hardware != want {
			t.Errorf("%s: %+v, %v, want %+v", attributes, facts.Hardware, err, want)
		}
	}
}

func TestParseFactsFindsTheGuestAgentsTerminal(t *testing.T) {
	const ours = `<target type="virtio" name="org.qemu.guest_agent.0" state="connected"/>`
	for channel, want := range map[string]int{
		``: -1,
		`<channel type="pty"><source path="/dev/pts/12"/>` + ours + `</channel>`:                             12,
		`<channel type="pty"><source path="/dev/pts/0"/>` + ours + `</channel>`:                              0,
		`<channel type="pty">` + ours + `</channel>`:                                                         -1, // not started yet
		`<channel type="pty"><source path="/dev/pts/x"/>` + ours + `</channel>`:                              -1,
		`<channel type="pty"><source path="/tmp/12"/>` + ours + `</channel>`:                                 -1,
		`<channel type="unix"><source mode="bind" path="/dev/pts/12"/>` + ours + `</channel>`:                -1,
		`<channel type="pty"><source path="/dev/pts/12"/><target type="virtio" name="org.other"/></channel>`: -1,
	} {
		facts, err := ParseFacts(`<domain><devices>` + channel + `</devices></domain>`)
		if err != nil || facts.AgentPTY != want || facts.AgentConnected != (want >= 0) {
			t.Errorf("%s: %d, connected: %t, %v; want %d", channel, facts.AgentPTY, facts.AgentConnected, err, want)
		}
	}
}

func TestParseFactsFindsDisplayAndTools(t *testing.T) {
	with := func(edit func(*Guest)) Facts {
		doc, err := XML(edited(edit))
		if err != nil {
			t.Fatal(err)
		}
		facts, err := ParseFacts(doc)
		if err != nil {
			t.Fatal(err)
		}
		return facts
	}
	const vnc = "/run/vnc.sock"
	plain := with(func(*Guest) {})
	if plain.Display != "" || plain.Tools {
		t.Errorf("a plain guest: %+v", plain)
	}
	full := with(func(g *Guest) {
		g.Tools, g.Display = "/tools.iso", &Display{Type: v1alpha1.DisplayVGA, Socket: vnc}
	})
	if full.Display != vnc || !full.Tools {
		t.Errorf("one with a display and tools: %+v", full)
	}
	for _, doc := range []string{
		`<graphics type="spice"><listen type="socket" socket="/x"/></graphics>`, `<graphics type="vnc" port="5900"/>`,
		`<disk type="file"><source file="/x"/><serial>berth</serial></disk>`,
		`<disk type="file"><source file="/x"/><serial>BERTH</serial><alias name="ua-berth"/></disk>`,
	} {
		facts, err := ParseFacts("<domain><devices>" + doc + "</devices></domain>")
		if err != nil || facts.Display != "" || facts.Tools {
			t.Errorf("%s: %+v, %v", doc, facts, err)
		}
	}
}

func TestParseFactsSaysWhatIsNoDomain(t *testing.T) {
	for _, doc := range []string{"", "x", "<network/>", "<domain>", "<domain><name>a</uuid></domain>"} {
		if _, err := ParseFacts(doc); err == nil {
			t.Errorf("no error for %q", doc)
		}
	}
}

func TestParseFactsTrustsNoDoubledIdentity(t *testing.T) {
	facts, err := ParseFacts(`<domain><metadata xmlns:b="https://berth.dev/domain/v1"><b:guest name="a"/><b:guest name="b"/></metadata></domain>`)
	if err != nil || facts.Identity != nil {
		t.Errorf("identity %v, error %v", facts.Identity, err)
	}
}

func FuzzFacts(f *testing.F) {
	for _, name := range []string{"live-ours", "live-foreign", "disks", "kernel", "buses"} {
		doc, err := os.ReadFile(filepath.Join("testdata", name+".xml"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(doc))
	}
	f.Fuzz(func(t *testing.T, doc string) {
		facts, err := ParseFacts(doc)
		if err != nil && !cmp.Equal(facts, Facts{}, seen) {
			t.Errorf("facts %v with error %v", facts, err)
		}
	})
}
