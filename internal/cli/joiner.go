package cli

import (
	"bytes"
	"context"
	"io"
	"sync"
	"time"
)

// joiner shows a console once, from its first byte on, out of two readings of it: its log, which has every line from the
// start but not the line that has no end yet, and an attachment, which has every byte but those before it. Logs have \n where
// consoles have \r\n.
type joiner struct {
	out   io.Writer
	whole func(context.Context) ([]byte, error) // reads the log up to now

	mu     sync.Mutex
	log    []byte // what of the log is shown
	live   []byte // of the attachment, until it is joined
	joined bool
	skip   int  // bytes of the attachment, as a log has them, that the log has shown
	held   bool // a \r of these may belong to a \n
}

// Write takes more of the attachment.
func (j *joiner) Write(more []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.joined {
		j.live = append(j.live, more...)
		return len(more), nil
	}
	return len(more), j.show(more)
}

// join shows the log as it grows until the attachment fits to it, or ctx is done.
func (j *joiner) join(ctx context.Context) error {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		if is, err := j.try(ctx); is || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause): // no watch tells of a log that is read whole
		}
	}
}

// try reads the log whole: it has all lines that the attachment had before, so they end it, or nearly. Of a line that has no
// end yet, such as a prompt, what came before the attachment is lost.
func (j *joiner) try(ctx context.Context) (bool, error) {
	j.mu.Lock()
	before := len(j.lines())
	j.mu.Unlock()
	whole, err := j.whole(ctx)
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil || len(whole) < len(j.log) {
		return false, nil // what cannot be read now can be later
	}
	more := whole[len(j.log):]
	j.log = whole
	if _, err := j.out.Write(bytes.ReplaceAll(more, []byte("\n"), []byte("\r\n"))); err != nil || len(j.live) == 0 {
		return false, err
	}
	lines := j.lines()
	for shown := before; shown <= len(whole); shown++ {
		if shared := min(shown, len(lines)); bytes.Equal(whole[len(whole)-shown:][:shared], lines[:shared]) {
			live := j.live
			j.joined, j.skip, j.log, j.live = true, shown, nil, nil
			return true, j.show(live)
		}
	}
	return false, nil
}

// lines are the attachment's complete lines, as a log has them.
func (j *joiner) lines() []byte {
	return bytes.ReplaceAll(j.live[:bytes.LastIndexByte(j.live, '\n')+1], []byte("\r\n"), []byte("\n"))
}

// show writes what of the attachment the log has not shown.
func (j *joiner) show(more []byte) error {
	for ; j.skip > 0 && len(more) > 0; more = more[1:] {
		if more[0] == '\r' && !j.held {
			j.held = true
			continue
		}
		if j.held && more[0] != '\n' { // it was a \r of its own
			j.skip--
		}
		if j.held = false; j.skip == 0 {
			break
		}
		j.skip--
	}
	_, err := j.out.Write(more)
	return err
}
