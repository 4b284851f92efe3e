package cli

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

// logOf is what the container runtime's log has of a console's output: lines without \r before \n, and no last line that
// has no end yet.
func logOf(output string) string {
	return strings.ReplaceAll(output[:strings.LastIndexByte(output, '\n')+1], "\r\n", "\n")
}

func TestAJoinedConsoleIsShownOnceAndWhole(t *testing.T) {
	line := rapid.StringMatching(`[ab]{0,3}(\x1b\[0m)?[ -~]{0,40}`)
	type step struct{ Printed, Live, Logged, Slept int }
	steps := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) step {
		return step{rapid.IntRange(0, 200).Draw(r, "printed"), rapid.IntRange(0, 200).Draw(r, "live"), rapid.IntRange(0, 200).Draw(r, "logged"), rapid.IntRange(0, 3).Draw(r, "slept")}
	}), 0, 20)
	rapid.Check(t, func(r *rapid.T) {
		var output string
		starts := []int{0}
		for i, l := range rapid.SliceOfN(line, 1, 40).Draw(r, "lines") {
			output += fmt.Sprint(i) + l + "\r\n" // no two alike: no tool could tell which of them it sees
			starts = append(starts, len(output))
		}
		output += rapid.SampledFrom([]string{"", "login: ", "# "}).Draw(r, "prompt")
		attached := rapid.SampledFrom(starts).Draw(r, "attached at")
		if rest := strings.IndexByte(output[attached:], '\n'); rest > 0 {
			attached += rapid.IntRange(0, rest).Draw(r, "within the line")
		}
		var shown bytes.Buffer
		var failure error
		plan := steps.Draw(r, "steps")
		synctest.Test(t, func(*testing.T) { // nothing is drawn in it: rapid and its bubble do not mix
			printed, live, logged := attached, attached, 0
			if rest := strings.IndexByte(output[attached:], '\n'); rest >= 0 {
				printed += rest + 1 // one that stops within a line would lose the line's beginning: no log has it yet
			}
			j := newJoiner(&shown, func() ([]byte, error) { return []byte(logOf(output[:printed])), nil })
			deliver := func(s step) {
				printed = min(printed+s.Printed, len(output))
				to := min(live+s.Live, printed)
				if s.Slept > 0 {
					to = printed // an attachment is not late
				}
				if _, err := j.Write([]byte(output[live:to])); err != nil {
					failure = err
				}
				live = to
				log := logOf(output[:printed])
				to = min(logged+s.Logged, len(log))
				if err := j.logged([]byte(log[logged:to])); err != nil {
					failure = err
				}
				logged = to
				time.Sleep(time.Duration(s.Slept) * stillness / 2)
			}
			for _, s := range plan {
				deliver(s)
			}
			deliver(step{len(output), len(output), len(output), 1})
			time.Sleep(2 * patience * stillness) // of the bubble's clock
		})
		got := shown.String()
		if cut := strings.LastIndexByte(output, '\n') + 1; attached > cut { // of a line without an end, no log has the beginning
			output = output[:cut] + output[attached:]
		}
		if failure != nil || got != output {
			r.Fatalf("attached at %d, %v:\n got %q\nwant %q", attached, failure, got, output)
		}
	})
}

func TestAConsoleThatSaysNothingMoreIsItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var shown bytes.Buffer
		j := newJoiner(&shown, func() ([]byte, error) { return nil, errors.New("not asked for") })
		if err := j.logged([]byte("one\ntwo\n")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * patience * stillness)
		if shown.String() != "one\r\ntwo\r\n" || j.isJoined() {
			t.Errorf("shown %q, joined: %v", shown.String(), j.isJoined())
		}
	})
}

// A console of a kernel that has printed much already is joined without waiting for it to be still.
func TestAConsoleThatIsNeverStillIsJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var output, shown bytes.Buffer
		for i := range 100 {
			output.WriteString(strings.Repeat("x", i) + "\r\n")
		}
		j := newJoiner(&shown, func() ([]byte, error) { return nil, errors.New("not asked for") })
		at := 500
		if err := j.logged([]byte(logOf(output.String()[:4000]))); err != nil {
			t.Fatal(err)
		}
		if _, err := j.Write(output.Bytes()[at:]); err != nil {
			t.Fatal(err)
		}
		if !j.isJoined() || shown.String() != output.String() {
			t.Errorf("joined: %v, shown:\n%s", j.isJoined(), shown.String())
		}
	})
}
