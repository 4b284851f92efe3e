package shim

import (
	"os"
	"strings"
	"sync"

	"github.com/berth-dev/berth/internal/berth/shimproto"
)

// exitPort is what the guest wrote to its exit port: of that, only the last line counts.
type exitPort struct {
	mu   sync.Mutex
	line []byte // that is being written, and no more than one byte too much of it
	last string // whole line before it
}

// tooLong follows what is kept of a line that is longer than it may be, so that it is taken for nothing else.
const tooLong = "..."

// follow reads until QEMU closes its end, as fast as the guest writes, and calls note after each piece.
func (e *exitPort) follow(port *os.File, note func()) {
	buf := make([]byte, 512)
	for {
		n, err := port.Read(buf)
		e.put(buf[:n])
		if err != nil {
			_ = port.Close()
			return
		}
		note()
	}
}

func (e *exitPort) put(data []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, b := range data {
		switch {
		case b == '\n':
			if text := e.current(); text != "" {
				e.last = text
			}
			e.line = e.line[:0]
		case len(e.line) <= shimproto.MaxExitText:
			e.line = append(e.line, b)
		}
	}
}

// text is the last line that is not empty.
func (e *exitPort) text() string {
	e.mu.Lock()
	defer e.mu.Unlock()
	if text := e.current(); text != "" {
		return text
	}
	return e.last
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
