package build

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// Progress tells a human what is being done, a line for each step.
type Progress struct {
	Out io.Writer

	mu    sync.Mutex
	began time.Time
}

// Step runs f. Steps that take under half a second are not worth a line, unless they fail.
func (p *Progress) Step(name string, f func() error) error {
	p.mu.Lock()
	if p.began.IsZero() {
		p.began = time.Now()
	}
	p.mu.Unlock()
	start := time.Now()
	slow := time.AfterFunc(2*time.Second, func() { p.Say("%s …", name) })
	err := f()
	slow.Stop()
	took := time.Since(start)
	switch {
	case err != nil:
		p.Say("%s: FAILED after %.1f s", name, took.Seconds())
		return fmt.Errorf("%s: %w", name, err)
	case took >= 500*time.Millisecond:
		p.Say("%s: %.1f s", name, took.Seconds())
	}
	return nil
}

// Say prints one line with the seconds since the first step.
func (p *Progress) Say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.began.IsZero() {
		p.began = time.Now()
	}
	fmt.Fprintf(p.Out, "%6.1f  %s\n", time.Since(p.began).Seconds(), fmt.Sprintf(format, args...))
}
