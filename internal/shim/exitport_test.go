package shim

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

func TestTheLastLineOfTheExitPortCounts(t *testing.T) {
	long := strings.Repeat("7", 64)
	for name, c := range map[string]struct {
		written []string
		want    string
	}{
		"nothing":              {nil, ""},
		"a line":               {[]string{"3\n"}, "3"},
		"without its end":      {[]string{"3"}, "3"},
		"in pieces":            {[]string{"12", "3", "\n"}, "123"},
		"several":              {[]string{"3\n4\n", "5\n"}, "5"},
		"an empty one behind":  {[]string{"3\n", "\n \r\n"}, "3"},
		"as Windows ends it":   {[]string{"3\r\n"}, "3"},
		"words":                {[]string{"3x -1\n"}, "3x -1"},
		"no ASCII":             {[]string{"\x1b[2J\x00ü\xff3\n"}, "?[2J??" + "?3"},
		"64 bytes":             {[]string{long + "\n"}, long},
		"65 bytes":             {[]string{long + "8\n"}, strings.Repeat("7", 61) + "..."},
		"65 bytes in pieces":   {[]string{long, "8"}, strings.Repeat("7", 61) + "..."},
		"a short one behind":   {[]string{long + "88\n4\n"}, "4"},
		"much, and no line":    {[]string{strings.Repeat("0", 1<<20), "3"}, strings.Repeat("0", 61) + "..."},
		"spaces and much more": {[]string{strings.Repeat(" ", 1<<20), "3\n"}, "..."},
	} {
		e := exitPort{note: func() {}}
		for _, text := range c.written {
			_, _ = e.Write([]byte(text))
		}
		if got := e.text(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

func FuzzExitPort(f *testing.F) {
	f.Add([]byte("3\n"), []byte(" \xff\n4"))
	f.Add([]byte(strings.Repeat("x", 70)), []byte("\r\n255\n"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		e := exitPort{note: func() {}}
		_, _ = e.Write(one)
		_, _ = e.Write(two)
		text := e.text()
		odd := func(r rune) bool { return r < ' ' || r > '~' }
		if len(text) > shimproto.MaxExitText || strings.IndexFunc(text, odd) >= 0 {
			t.Errorf("%q and %q became %q", one, two, text)
		}
		whole := exitPort{note: func() {}}
		if _, _ = whole.Write(append(one, two...)); whole.text() != text {
			t.Errorf("%q and %q became %q in pieces, %q at once", one, two, text, whole.text())
		}
	})
}
