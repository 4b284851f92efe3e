package libvirtd_test

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/test/env"
)

// quick options, so that a hanging libvirtd is noticed in a test's time.
func quick(socket string) libvirtd.Options {
	return libvirtd.Options{
		Sockets: []string{socket},
		Quick:   time.Second, Control: 2 * time.Second, Start: 20 * time.Second, Ping: 200 * time.Millisecond, Resync: time.Second,
	}
}

func TestLibvirtdIsKilled(t *testing.T) {
	l := env.Libvirtd(t)
	c, k := run(t, quick(l.Socket))
	g := guest(t, l, "survivor", env.Idle)
	create(t, c, g)
	output(t, c, g, env.BootText)
	l.Kill()
	env.Eventually(t, "the loss to be noticed", func() bool { return !c.Connected() })
	if _, err := c.Domain(t.Context(), g.UUID); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtUnreachable || fault.ClassOf(err) != fault.Transient {
		t.Errorf("a domain was looked up without libvirtd: %v", err)
	}
	start := time.Now()
	l.Start()
	env.Eventually(t, "a new connection", c.Connected)
	t.Logf("connected %v after libvirtd was started", time.Since(start))
	if d := look(t, c, g.UUID); d.State != libvirtd.Running {
		t.Errorf("after the restart: %+v", d)
	}
	before := k.of(g.UUID)
	if err := c.Suspend(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	env.Eventually(t, "an event after the restart", func() bool { return k.of(g.UUID) > before })
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.states) != 3 || k.states[0] != nil || k.states[1] == nil || k.states[2] != nil {
		t.Errorf("told of connectivity: %v", k.states)
	}
}

func TestLibvirtdHangs(t *testing.T) {
	l := env.Libvirtd(t)
	c, k := run(t, quick(l.Socket))
	g := guest(t, l, "hang", env.Idle)
	create(t, c, g)
	l.Signal(syscall.SIGSTOP)
	start := time.Now()
	var wg sync.WaitGroup
	for range 20 { // more than are answered at once
		wg.Go(func() {
			if _, err := c.Domain(t.Context(), g.UUID); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtUnreachable {
				t.Errorf("looking up while libvirtd hangs: %v", err)
			}
		})
	}
	wg.Wait()
	if took := time.Since(start); took > 4*time.Second {
		t.Errorf("20 lookups with a deadline of 1 s took %v", took)
	}
	env.Eventually(t, "the hang to be noticed", func() bool { return !c.Connected() })
	t.Logf("noticed after %v", time.Since(start))
	if err := c.Err(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the hang is told as %v", err)
	}
	start = time.Now()
	l.Signal(syscall.SIGCONT)
	env.Eventually(t, "a connection", c.Connected)
	t.Logf("connected %v after the hang", time.Since(start))
	if d := look(t, c, g.UUID); d.State != libvirtd.Paused {
		t.Errorf("after the hang: %+v", d)
	}
	before := k.of(g.UUID)
	if err := c.Resume(t.Context(), g.UUID); err != nil {
		t.Fatal(err)
	}
	env.Eventually(t, "an event after the hang", func() bool { return k.of(g.UUID) > before })
}

func TestCallsEndWithTheirContext(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	l.Signal(syscall.SIGSTOP)
	defer l.Signal(syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := c.Domains(ctx); err == nil {
		t.Error("no error")
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("took %v", took)
	}
}

func TestNothingListens(t *testing.T) {
	k := &told{}
	c := libvirtd.New(libvirtd.Options{Sockets: []string{filepath.Join(t.TempDir(), "x")}}, k.watcher())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- c.Run(ctx) }()
	env.Eventually(t, "word of it", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.states) == 1 && fault.ReasonOf(k.states[0]) == v1alpha1.ReasonLibvirtUnreachable
	})
	if _, err := c.Domains(ctx); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtUnreachable {
		t.Errorf("listing: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
