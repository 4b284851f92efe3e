package cli

import (
	"bytes"
	"context"
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
	type step struct{ Printed, Live, Slept int }
	steps := rapid.SliceOfN(rapid.Custom(func(r *rapid.T) step {
		return step{rapid.IntRange(0, 200).Draw(r, "printed"), rapid.IntRange(0, 200).Draw(r, "live"), rapid.IntRange(0, 3).Draw(r, "slept")}
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
		plan, late := steps.Draw(r, "steps"), rapid.IntRange(0, 3).Draw(r, "readings that fail")
		synctest.Test(t, func(*testing.T) { // nothing is drawn in it: rapid and its bubble do not mix
			printed, live := attached, attached
			if rest := strings.IndexByte(output[attached:], '\n'); rest >= 0 {
				printed += rest + 1 // one that stops within a line would lose the line's beginning: no log has it yet
			}
			j := &joiner{out: &shown, whole: func(context.Context) ([]byte, error) {
				if late--; late >= 0 {
					return nil, errors.New("not yet")
				}
				return []byte(logOf(output[:printed])), nil
			}}
			ctx, stop := context.WithCancel(context.Background())
			joined := make(chan error, 1)
			go func() { joined <- j.join(ctx) }()
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
				time.Sleep(time.Duration(s.Slept) * 100 * time.Millisecond)
			}
			for _, s := range plan {
				deliver(s)
			}
			deliver(step{len(output), len(output), 1})
			time.Sleep(10 * time.Second) // of the bubble's clock
			stop()
			if err := <-joined; err != nil {
				failure = err
			}
			if !j.joined { // an attachment that had nothing
				_, failure = j.try(context.Background())
			}
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

func TestALineThatEndsWhileTheLogIsReadIsShownOnce(t *testing.T) {
	var shown bytes.Buffer
	j := &joiner{out: &shown}
	write := func(text string) {
		if _, err := j.Write([]byte(text)); err != nil {
			t.Error(err)
		}
	}
	j.whole = func(context.Context) ([]byte, error) {
		write("t\r\nlogin: ")
		return []byte("boot\n"), nil
	}
	write("boo")
	if joined, err := j.try(t.Context()); !joined || err != nil || shown.String() != "boot\r\nlogin: " {
		t.Errorf("joined %v, %v: it shows %q", joined, err, &shown)
	}
}
