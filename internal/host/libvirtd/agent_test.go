package libvirtd_test

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/qga"
	"github.com/berth-dev/berth/test/env"
)

// TestLibvirtdHearsNothingOfAGuestAgent has a guest write to its agent's port what libvirtd would not survive, and then be
// asked by the way that is ours.
func TestLibvirtdHearsNothingOfAGuestAgent(t *testing.T) {
	files := env.Need(t, "BERTH_HOSTILE_GUEST", "the directory of the hostile guest's vmlinuz and initrd")
	l := env.Libvirtd(t)
	c, told := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := linuxOf(t, l, files, "hostile", 0)
	tty := boot(t, c, g)
	before := told.of(g.UUID)
	if _, err := tty.Write([]byte("in 0 hostile agent\n")); err != nil {
		t.Fatal(err)
	}
	facts := func() domain.Facts {
		t.Helper()
		f, err := domain.ParseFacts(look(t, c, g.UUID).XML)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	pid, err := strconv.Atoi(strings.TrimSpace(read(t, l.Dir+"/run/qemu/test_hostile.pid")))
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (qga.Info, error) {
		env.Eventually(t, "a guest agent to connect", func() bool { return facts().AgentConnected })
		port, err := qga.OpenPort(t.Context(), pid, facts().AgentPTY)
		if err != nil {
			t.Fatal(err)
		}
		defer port.Close()
		return qga.Ask(t.Context(), port)
	}
	refused := func(lie string) {
		t.Helper()
		if info, err := ask(); err == nil {
			t.Errorf("%s is taken for %+v", lie, info)
		}
		tty.await(regexp.MustCompile("hostile: told " + lie))
	}
	refused("lists in lists")
	info, err := ask()
	if want := "[2J]0;owned[6n31m" + strings.Repeat("9", 111); err != nil || info.AgentVersion != want || info.Hostname != "[2J]0;owned[6n31mhost" {
		t.Errorf("names for a terminal are taken for %+v, %v", info, err)
	}
	tty.await(regexp.MustCompile("hostile: told names for a terminal"))
	refused("text without end")
	if info, err = ask(); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(qga.Info{AgentVersion: "1.0-honest", Hostname: "tiny", OS: qga.OS{PrettyName: "Tiny"}}, info); diff != "" {
		t.Errorf("the guest (-want +got):\n%s", diff)
	}
	if told.of(g.UUID) == before {
		t.Error("libvirtd told nothing of a guest agent that came and went")
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(fmt.Errorf("reading what libvirtd keeps: %w", err))
	}
	return string(raw)
}
