package libvirtd_test

import (
	"os"
	"regexp"
	"testing"

	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/test/env"
)

// TestFirmwareSpeaksOnTheConsole starts a guest whose disk holds nothing that boots: the console says so, and that it is
// tried again.
func TestFirmwareSpeaksOnTheConsole(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "nodisk", env.Idle)
	if err := os.WriteFile(g.Disks[0].Backing[0].Path, make([]byte, 4<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	tty := watched(t, c, g)
	tty.await(regexp.MustCompile("SeaBIOS"))
	tty.await(regexp.MustCompile("No bootable device"))
	tty.await(regexp.MustCompile("SeaBIOS")) // once more
	if d := look(t, c, g.UUID); d.Resets.Count == 0 || d.Resets.Latest[0].IsZero() {
		t.Errorf("it was reset, and these are counted: %+v", d.Resets)
	}
}
