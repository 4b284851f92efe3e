package cli

import (
	"bytes"
	"io"
	"sync"
	"time"
)

// When an attachment that fits to its log nowhere is taken as it is.
const (
	stillness   = 300 * time.Millisecond // of a console, before its log is read whole
	patience    = 8                      // such readings
	surelyAlike = 256                    // bytes that two places of a console hardly have in common
)

// joiner shows a console once, from its first byte on, out of two readings of it: its log, which has every line from the
// start but not the line that has no end yet, and an attachment, which has every byte but those before it. Logs have \n where
// consoles have \r\n.
type joiner struct {
	out   io.Writer
	whole func() ([]byte, error) // reads the log up to now

	mu       sync.Mutex
	log      []byte // what of the log is shown
	followed int    // bytes of it that logged was given
	live     []byte // of the attachment, until it is joined
	joined   chan struct{}
	skip     int  // bytes of the attachment, as a log has them, that the log has shown
	held     bool // a \r of these may belong to a \n
	still    *time.Timer
	readings int
}

func newJoiner(out io.Writer, whole func() ([]byte, error)) *joiner {
	j := &joiner{out: out, whole: whole, joined: make(chan struct{})}
	j.still = time.AfterFunc(stillness, j.settle)
	j.still.Stop()
	return j
}

// logged takes more of the log, as it is followed.
func (j *joiner) logged(more []byte) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	known := max(len(j.log)-j.followed, 0)
	j.followed += len(more)
	if j.isJoined() || known >= len(more) {
		return nil
	}
	if err := j.showLog(more[known:]); err != nil {
		return err
	}
	return j.changed()
}

// showLog shows more of the log, as a console has it.
func (j *joiner) showLog(more []byte) error {
	j.log = append(j.log, more...)
	_, err := j.out.Write(bytes.ReplaceAll(more, []byte("\n"), []byte("\r\n")))
	return err
}

// Write takes more of the attachment.
func (j *joiner) Write(more []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.isJoined() {
		return len(more), j.show(more)
	}
	j.live = append(j.live, more...)
	return len(more), j.changed()
}

func (j *joiner) isJoined() bool {
	select {
	case <-j.joined:
		return true
	default:
		return false
	}
}

// changed looks whether much of both readings fits; if there is little yet, it is for settle to look.
func (j *joiner) changed() error {
	if lines := j.lines(); len(lines) >= surelyAlike {
		for from := 0; ; from++ {
			at := bytes.Index(j.log[from:], lines[:surelyAlike])
			if at < 0 {
				break
			}
			from += at
			if shared := min(len(j.log)-from, len(lines)); bytes.Equal(j.log[from:from+shared], lines[:shared]) {
				return j.join(len(j.log) - from)
			}
		}
	}
	if len(j.live) > 0 {
		j.readings = 0
		j.still.Reset(stillness)
	}
	return nil
}

// lines are the attachment's complete lines, as a log has them.
func (j *joiner) lines() []byte {
	return bytes.ReplaceAll(j.live[:bytes.LastIndexByte(j.live, '\n')+1], []byte("\r\n"), []byte("\n"))
}

// settle joins a console that has been still for a while: a log that is read whole has all lines that the attachment had by
// then, so they end it, or nearly. Of a line that has no end, such as a prompt, what came before the attachment is lost.
func (j *joiner) settle() {
	j.mu.Lock()
	before := len(j.lines())
	j.mu.Unlock()
	whole, err := j.whole()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.isJoined() {
		return
	}
	if err == nil && bytes.HasPrefix(whole, j.log) {
		if err := j.showLog(whole[len(j.log):]); err != nil {
			return // an output that fails does so for the attachment, too
		}
		lines := j.lines()
		for shown := before; shown <= len(j.log); shown++ {
			if shared := min(shown, len(lines)); bytes.Equal(j.log[len(j.log)-shown:][:shared], lines[:shared]) {
				_ = j.join(shown)
				return
			}
		}
	}
	if j.readings++; j.readings < patience {
		j.still.Reset(stillness)
		return
	}
	_ = j.join(0) // the log was cut, or cannot be read: show all that the attachment has
}

// join goes over to the attachment, of which the log has shown so much.
func (j *joiner) join(shown int) error {
	j.still.Stop()
	close(j.joined)
	j.skip = shown
	live := j.live
	j.log, j.live = nil, nil
	return j.show(live)
}

// show writes what of the attachment the log has not shown.
func (j *joiner) show(more []byte) error {
	for j.skip > 0 && len(more) > 0 {
		switch {
		case more[0] == '\r' && !j.held:
			j.held = true
			more = more[1:]
		case j.held && more[0] != '\n': // a \r of its own
			j.held = false
			j.skip--
		default:
			j.held = false
			j.skip--
			more = more[1:]
		}
	}
	if len(more) == 0 {
		return nil
	}
	_, err := j.out.Write(more)
	return err
}
