package e2e

import (
	"bufio"
	"context"
	"io"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// console follows a guest's serial console, as kubectl logs -f shows it.
type console struct {
	l    *lab
	mu   sync.Mutex
	text strings.Builder
	more chan struct{}
}

// logs follows the console of the guest's present container.
func (l *lab) logs(vm string) *console {
	l.Helper()
	ctx, cancel := context.WithCancel(l.Context())
	l.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "kubectl", "-n", l.ns, "logs", "-f", vm)
	out, err := cmd.StdoutPipe()
	if err != nil {
		l.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.Fatalf("kubectl logs: %v", err)
	}
	c := &console{l: l, more: make(chan struct{}, 1)}
	go func() {
		r := bufio.NewReader(out)
		buffer := make([]byte, 4096)
		for {
			n, err := r.Read(buffer)
			c.mu.Lock()
			c.text.Write(buffer[:n])
			c.mu.Unlock()
			select {
			case c.more <- struct{}{}:
			default:
			}
			if err != nil {
				_ = cmd.Wait()
				return
			}
		}
	}()
	return c
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// await waits until the console has shown a text.
func (c *console) await(text string) {
	c.l.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for !strings.Contains(c.String(), text) {
		select {
		case <-c.more:
		case <-deadline.C:
			shown := c.String()
			c.l.Fatalf("the console does not show %q; its end is:\n%s", text, shown[max(0, len(shown)-2000):])
		}
	}
}

// typed opens the guest's console for typing, as kubectl attach does.
func (l *lab) attach(vm string) io.WriteCloser {
	l.Helper()
	ctx, cancel := context.WithCancel(l.Context())
	cmd := exec.CommandContext(ctx, "kubectl", "-n", l.ns, "attach", "-i", vm)
	in, err := cmd.StdinPipe()
	if err != nil {
		l.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.Fatalf("kubectl attach: %v", err)
	}
	l.Cleanup(func() { cancel(); _ = cmd.Wait() })
	return in
}

// say types a line into the guest's console.
func (l *lab) say(vm, line string) {
	l.Helper()
	in := l.attach(vm)
	if _, err := io.WriteString(in, line+"\n"); err != nil {
		l.Fatalf("typing %q: %v", line, err)
	}
}
