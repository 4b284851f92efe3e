package console

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// takeAll takes until the end.
func takeAll(r *ring, chunk int) string {
	var all bytes.Buffer
	buf := make([]byte, chunk)
	for {
		data := r.take(buf)
		if len(data) == 0 {
			return all.String()
		}
		all.Write(data)
	}
}

func TestRing(t *testing.T) {
	mark := func(n int) string { return fmt.Sprintf("\r\n[berth: %d bytes of console dropped]\r\n", n) }
	for name, c := range map[string]struct {
		puts []string
		want string
	}{
		"nothing":                           {nil, ""},
		"what fits comes out as it went in": {[]string{"abc", "", "defgh"}, "abcdefgh"},
		"the oldest is dropped":             {[]string{"abcdef", "ghij"}, mark(2) + "cdefghij"},
		"drops add up":                      {[]string{"abcdef", "ghij", "klmnopq"}, mark(9) + "jklmnopq"},
		"all is dropped but the last":       {[]string{"abcdefgh", "ABCDEFGH"}, mark(8) + "ABCDEFGH"},
	} {
		r := newRing(8)
		for _, p := range c.puts {
			_, _ = r.Write([]byte(p))
		}
		r.close()
		if got := takeAll(r, 64); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestRingKeepsOrderWhileBothSidesMove(t *testing.T) {
	r := newRing(7)
	buf := make([]byte, 64)
	var want, got strings.Builder
	for i := range 1000 {
		text := strings.Repeat(string(rune('a'+i%26)), i%8)
		want.WriteString(text)
		_, _ = r.Write([]byte(text))
		for r.length > 0 {
			got.Write(r.take(buf[:1+i%64]))
		}
	}
	if got.String() != want.String() {
		t.Errorf("bytes changed on their way")
	}
}

func TestRingDropsOnlyWhatWasNotTaken(t *testing.T) {
	r := newRing(4)
	_, _ = r.Write([]byte("abcd"))
	first := string(r.take(make([]byte, 2)))
	_, _ = r.Write([]byte("efgh"))
	r.close()
	rest := takeAll(r, 64)
	if want := "\r\n[berth: 2 bytes of console dropped]\r\nefgh"; first != "ab" || rest != want {
		t.Errorf("got %q and %q, want %q and %q", first, rest, "ab", want)
	}
}
