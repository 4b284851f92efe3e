package shim

import (
	"cmp"
	"strings"
	"sync/atomic"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

// exitPort is what the guest wrote to its exit port: of that, only the last line counts.
type exitPort struct {
	line []byte       // that is being written, and no more than one byte too much of it
	last string       // whole line before it
	said atomic.Value // what text returns
	note func()       // has Run look at it
}

// tooLong follows what is kept of a line that is longer than it may be, so that it is taken for nothing else.
const tooLong = "..."

// Write takes what the guest wrote. It never fails.
func (e *exitPort) Write(data []byte) (int, error) {
	for _, b := range data {
		switch {
		case b == '\n':
			e.last = cmp.Or(e.current(), e.last)
			e.line = e.line[:0]
		case len(e.line) <= shimproto.MaxExitText:
			e.line = append(e.line, b)
		}
	}
	e.said.Store(cmp.Or(e.current(), e.last))
	e.note()
	return len(data), nil
}

// current is the line that is being written, in printable ASCII.
func (e *exitPort) current() string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, strings.TrimSpace(string(e.line)))
	if len(e.line) > shimproto.MaxExitText {
		text = text[:min(len(text), shimproto.MaxExitText-len(tooLong))] + tooLong
	}
	return text
}

// text is the last line that is not empty. It may be called while another goroutine follows.
func (e *exitPort) text() string {
	text, _ := e.said.Load().(string)
	return text
}
