package client

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/internal/berth/guestlink"
)

func requests() []Request {
	return []Request{
		{Kind: Exec, Command: guestlink.Command{Args: []string{"sh", "-c", "", "ünïcode\xff"}, Env: []string{"A=", "B=c d"}, User: "web:www", Dir: "/srv"}},
		{Kind: Exec, Command: guestlink.Command{Args: []string{"top"}, Env: []string{"TERM=xterm"}, Terminal: true, Size: guestlink.Size{Rows: 25, Columns: 65535}}},
		{Kind: Exec, Command: guestlink.Command{Args: []string{"sleep", "1"}, Env: []string{}, Detached: true}},
		{Kind: Readiness, Command: guestlink.Command{Args: []string{"true"}, Env: []string{}}},
		{Kind: Liveness, Command: guestlink.Command{Args: []string{"true"}, Env: []string{}}},
		{Kind: Reset},
		{Kind: NMI},
	}
}

func TestRequestsArriveAsTheyWereSent(t *testing.T) {
	for _, want := range requests() {
		packet, err := want.encode()
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := ParseRequest(packet)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%q, %v (-sent +received):\n%s", packet, err, diff)
		}
	}
}

func TestOddRequestsAreRefused(t *testing.T) {
	for name, packet := range map[string]string{
		"nothing":                  "",
		"half a one":               "\x01",
		"another version":          "\x02\x04",
		"of no kind":               "\x01\x00",
		"of another kind":          "\x01\x06",
		"no command":               "\x01\x01",
		"a reset with a command":   "\x01\x04true",
		"a command of no words":    "\x01\x01false false 0 0 0\x00\x00",
		"fewer words than it says": "\x01\x01false false 0 0 99\x00\x00\x00true",
		"longer than it may be":    "\x01\x01false false 0 0 1\x00\x00\x00" + strings.Repeat("x", MaxRequest),
	} {
		if r, _, err := ParseRequest([]byte(packet)); err == nil {
			t.Errorf("%s: was taken as %+v", name, r)
		}
	}
	if size, ok := ParseSize([]byte("\x01\x00\x19\x00\x50")); !ok || size != (guestlink.Size{Rows: 25, Columns: 80}) {
		t.Errorf("a size became %v, %v", size, ok)
	}
	if _, ok := ParseSize([]byte("\x01\x00\x19")); ok {
		t.Error("half a size was taken")
	}
}

func FuzzRequest(f *testing.F) {
	for _, r := range requests() {
		packet, err := r.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(packet)
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		r, command, err := ParseRequest(packet)
		if err != nil {
			return
		}
		if len(packet) > MaxRequest || len(command) > guestlink.MaxFrame || (r.Kind <= Liveness) != (len(r.Args) > 0) {
			t.Errorf("%q was taken as %+v", packet, r)
		}
	})
}
