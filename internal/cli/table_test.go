package cli

import (
	"bytes"
	"testing"
)

func TestNothingFromAClusterMovesTheTerminal(t *testing.T) {
	for text, want := range map[string]string{
		"Debian GNU/Linux 12 (bookworm)": "Debian GNU/Linux 12 (bookworm)",
		"größer ✓":                       "größer ✓",
		"\x1b[2J\x1b]0;owned\x07":        "?[2J?]0;owned?",
		"one\ntwo\tthree\r":              "one two three?",
		"a\u202eb\u2066c\u200d":          "a?b?c?",
		"\u009b31m\u0085\u2028":          "?31m??",
		"\xff\xfe":                       "??",
	} {
		if got := clean(text); got != want {
			t.Errorf("clean(%q) = %q, want %q", text, got, want)
		}
	}
	var out bytes.Buffer
	w := newTable(&out, "NAME", "OS")
	w.row("web", "\x1b[31mred\x1b[0m\nnext")
	if err := w.Flush(); err != nil || bytes.ContainsAny(out.Bytes(), "\x1b\r") || bytes.Count(out.Bytes(), []byte("\n")) != 2 {
		t.Errorf("the table is %q, %v", out.String(), err)
	}
}

func TestSizes(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1024: "1Ki", 1536: "1.5Ki", 20 << 30: "20Gi", 1<<40 + 1<<39: "1.5Ti", 300 << 20: "300Mi"} {
		if got := bytesOf(n); got != want {
			t.Errorf("bytesOf(%d) = %s, want %s", n, got, want)
		}
	}
}
