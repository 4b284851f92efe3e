package link

import "testing"

func TestWords(t *testing.T) {
	for want, e := range map[string]Exit{
		"":                             {},
		"PoweredOff":                   {Reason: "PoweredOff"},
		"QEMUFailed: no: such disk":    {Reason: "QEMUFailed", Message: "no: such disk"},
		"the container was not wanted": {Message: "the container was not wanted"},
	} {
		words := e.Words()
		if words != want {
			t.Errorf("%+v leaves %q, want %q", e, words, want)
		}
		if reason, message := ParseWords(words); e.Reason != "" && (reason != e.Reason || message != e.Message) {
			t.Errorf("%q is taken for %q and %q", words, reason, message)
		}
	}
}
