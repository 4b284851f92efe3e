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

func TestLibvirtdIsKilled(t *testing.T) {
	l := env.Libvirtd(t)
	c, k := run(t, libvirtd.Options{Sockets: []string{l.Socket}})
	g := guest(t, l, "survivor", env.Idle)
	create(t, c, g)
	output(t, c, g)
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
	sockets := []string{l.Socket}
	patient, _ := run(t, libvirtd.Options{Sockets: sockets})
	g := guest(t, l, "hang", env.Idle)
	create(t, patient, g)
	c, k := run(t, libvirtd.Options{Sockets: sockets, QueryTimeout: 2 * time.Second, PingInterval: 200 * time.Millisecond})
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
	env.Eventually(t, "the hang to be noticed", func() bool { return !c.Connected() })
	t.Logf("noticed after %v", time.Since(start))
	if err := c.Err(); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the hang is told as %v", err)
	}
	start = time.Now()
	l.Signal(syscall.SIGCONT)
	env.Eventually(t, "an answer", func() bool {
		d, err := c.Domain(t.Context(), g.UUID)
		return err == nil && d.State == libvirtd.Paused
	})
	t.Logf("answered %v after the hang", time.Since(start))
	before := k.of(g.UUID)
	env.Eventually(t, "an event after the hang", func() bool {
		err := errors.Join(patient.Resume(t.Context(), g.UUID), patient.Suspend(t.Context(), g.UUID))
		return err == nil && k.of(g.UUID) > before
	})
}

func TestCallsEndWithTheirContext(t *testing.T) {
	l := env.Libvirtd(t)
	c, _ := run(t, libvirtd.Options{Sockets: []string{l.Socket}, QueryTimeout: time.Hour})
	l.Signal(syscall.SIGSTOP)
	defer l.Signal(syscall.SIGCONT)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.States(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
}

func TestNothingListens(t *testing.T) {
	k := &told{}
	c := libvirtd.New(libvirtd.Options{Sockets: []string{filepath.Join(t.TempDir(), "x")}}, k.watcher())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.Run(ctx)
	}()
	env.Eventually(t, "word of it", func() bool {
		k.mu.Lock()
		defer k.mu.Unlock()
		return len(k.states) == 1 && fault.ReasonOf(k.states[0]) == v1alpha1.ReasonLibvirtUnreachable
	})
	if _, err := c.States(ctx); fault.ReasonOf(err) != v1alpha1.ReasonLibvirtUnreachable {
		t.Errorf("listing: %v", err)
	}
	cancel()
	<-done
}
