package shimproto

import "testing"

func TestTerminationMessage(t *testing.T) {
	for want, e := range map[string]Exit{
		"":                             {},
		"PoweredOff":                   {Reason: "PoweredOff"},
		"QEMUFailed: no: such disk":    {Reason: "QEMUFailed", Message: "no: such disk"},
		"the container was not wanted": {Message: "the container was not wanted"},
	} {
		text := e.TerminationMessage()
		if text != want {
			t.Errorf("%+v leaves %q, want %q", e, text, want)
		}
		if reason, message := ParseTerminationMessage(text); e.Reason != "" && (reason != e.Reason || message != e.Message) {
			t.Errorf("%q is taken for %q and %q", text, reason, message)
		}
	}
}
