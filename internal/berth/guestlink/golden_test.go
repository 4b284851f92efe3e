package guestlink

import (
	"bytes"
	"strings"
	"testing"
)

// TestTheWireStays: a guest program lives as long as its guest, and is older than some shims, or newer.
func TestTheWireStays(t *testing.T) {
	hello := "\xbe\x01\x00\x00\x00\x00\x00\x41\x00BerthGuestLink\n\x01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x00\x00\x00\x00\x06v1" + strings.Repeat("\x00", 30)
	if got := string(appendHello(nil, 5, 6, "v1")); got != hello {
		t.Errorf("a hello is %q, want %q", got, hello)
	}
	if nonce, echo, version, ok := parseHello([]byte(hello[8:])); nonce != 5 || echo != 6 || version != "v1" || !ok {
		t.Errorf("a hello is read as %d %d %q %t", nonce, echo, version, ok)
	}
	const command = "true false 24 80 2\x00web\x00/srv\x00ls\x00-l\x00A=b"
	s := &Stream{link: &Link{}, id: 0x0102, credit: Window, pending: [kinds][]byte{
		kindOpen: []byte(command), kindCredit: {0, 1, 0, 0}, kindWindowSize: {0, 24, 0, 80}, kindSignal: {15}, kindStdin: []byte("in"),
		kindStdout: []byte("out"), kindStderr: []byte("err"), kindEnd: {}, kindExit: {3}, kindReset: {},
	}}
	var got []byte
	for range kinds {
		got = append(got, s.next(nil)...)
	}
	want := []string{
		"\xbe\x02\x01\x02\x00\x00\x00\x25" + command, "\xbe\x03\x01\x02\x00\x00\x00\x04\x00\x01\x00\x00", "\xbe\x04\x01\x02\x00\x00\x00\x04\x00\x18\x00\x50",
		"\xbe\x05\x01\x02\x00\x00\x00\x01\x0f", "\xbe\x06\x01\x02\x00\x00\x00\x02in", "\xbe\x07\x01\x02\x00\x00\x00\x03out", "\xbe\x08\x01\x02\x00\x00\x00\x03err",
		"\xbe\x09\x01\x02\x00\x00\x00\x00", "\xbe\x0a\x01\x02\x00\x00\x00\x01\x03", "\xbe\x0b\x01\x02\x00\x00\x00\x00",
	}
	if !bytes.Equal(got, []byte(strings.Join(want, ""))) {
		t.Errorf("frames are\n%q, want\n%q", got, strings.Join(want, ""))
	}
	c := Command{Args: []string{"ls", "-l"}, Env: []string{"A=b"}, User: "web", Dir: "/srv", Terminal: true, Size: Size{24, 80}}
	if got := string(encode(t, c)); got != command {
		t.Errorf("a command is %q, want %q", got, command)
	}
}
