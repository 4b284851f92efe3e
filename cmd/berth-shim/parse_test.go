package main

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/berth/guestlink"
	"github.com/berth-dev/berth/internal/shim/client"
)

func TestParse(t *testing.T) {
	for line, want := range map[string]client.Request{
		"exec true":       {Kind: client.Exec, Command: guestlink.Command{Args: []string{"true"}}},
		"exec -- -x -u a": {Kind: client.Exec, Command: guestlink.Command{Args: []string{"-x", "-u", "a"}}},
		"exec -u a:b -w /c -e D=e=f -e G= -d h -i": {Kind: client.Exec, Command: guestlink.Command{
			User: "a:b", Dir: "/c", Env: []string{"D=e=f", "G="}, Detached: true, Args: []string{"h", "-i"},
		}},
		"exec --detach true":             {Kind: client.Exec, Command: guestlink.Command{Detached: true, Args: []string{"true"}}},
		"probe true":                     {Kind: client.Readiness, Command: guestlink.Command{Args: []string{"true"}}},
		"probe --startup -- true --help": {Kind: client.Readiness, Command: guestlink.Command{Args: []string{"true", "--help"}}},
		"probe --readiness true":         {Kind: client.Readiness, Command: guestlink.Command{Args: []string{"true"}}},
		"probe --liveness -- true":       {Kind: client.Liveness, Command: guestlink.Command{Args: []string{"true"}}},
		"reset":                          {Kind: client.Reset, Command: guestlink.Command{Args: []string{}}},
		"nmi":                            {Kind: client.NMI, Command: guestlink.Command{Args: []string{}}},
	} {
		got, err := parse(strings.Fields(line))
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", line, err, diff)
		}
	}
	for line, want := range map[string]string{
		"dance":            `"dance" is no command of berth-shim`,
		"exec":             "a command to run in the guest is missing",
		"exec -u":          "flag -u needs a value",
		"exec -e A true":   `"A" is not KEY=VALUE`,
		"exec -e =A true":  `"=A" is not KEY=VALUE`,
		"exec -x true":     `berth-shim exec has no flag "-x"`,
		"probe -u a true":  `berth-shim probe has no flag "-u"`,
		"probe --liveness": "a command to run in the guest is missing",
		"reset now":        "berth-shim reset takes no arguments",
	} {
		if got, err := parse(strings.Fields(line)); err == nil || err.Error() != want {
			t.Errorf("%s: got %+v, %v; want %q", line, got, err, want)
		}
	}
}

// TestNames: the image makes a link of each line.
func TestNames(t *testing.T) {
	data, err := os.ReadFile("names")
	if err != nil {
		t.Fatal(err)
	}
	names := strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
	if !slices.IsSorted(names) || len(slices.Compact(slices.Clone(names))) != len(names) {
		t.Error("the names are not sorted, or one is there twice")
	}
	for _, name := range names {
		if name == "" || strings.ContainsAny(name, "/ \t'\"\\$") {
			t.Errorf("%q is no name of a command", name)
		}
	}
	for _, name := range []string{"berth-shim", "guest", "sh", "bash", "ash", "tar", "apt-get", "dnf", "apk", "systemctl", "journalctl", "rc-service", "fsfreeze", "ps", "["} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is missing", name)
		}
	}
}
