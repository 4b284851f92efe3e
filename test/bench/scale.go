package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// maxRSS is how much the operator may take at any moment, in MiB, and maxStart how long until it has seen to everything.
const (
	maxRSS   = 300
	maxStart = 30
)

// inCluster measures on an API server of its own, beside no lab, with nodes for n VirtualMachines.
func inCluster(ctx context.Context, n int, measure func(*cluster, context.Context, *play, int) ([]figure, error)) (figures []figure, err error) {
	runtime.LockOSThread() // or what it starts might end with a thread of this process
	ctx, cancel := context.WithCancelCause(ctx)
	c, err := startCluster(ctx, cancel)
	if err != nil {
		return nil, err
	}
	var group sync.WaitGroup
	defer func() {
		if cause := context.Cause(ctx); err != nil && cause != nil {
			err = cause
		}
		cancel(nil)
		group.Wait()
		err = errors.Join(err, c.stop())
	}()
	if err := c.makeNodes(ctx, (n+guestsPerNode-1)/guestsPerNode); err != nil {
		return nil, err
	}
	play := newPlay(c)
	group.Go(func() { play.run(ctx) })
	return measure(c, ctx, play, n)
}

// scale measures an operator that has n VirtualMachines.
func (c *cluster) scale(ctx context.Context, play *play, n int) (figures []figure, err error) {
	// All of them are made while the operator runs.
	o, err := c.startOperator(ctx)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	if err := c.makeGuests(ctx, n); err != nil {
		return nil, err
	}
	made := time.Since(began)
	if err := play.await(ctx, "guests that are ready", func(s standing) bool { return s.ready == n && s.current == n }); err != nil {
		return nil, err
	}
	filled := time.Since(began)
	use, err := o.use(ctx)
	if err != nil {
		return nil, err
	}
	all := fmt.Sprintf("%d VirtualMachines", n)
	figures = append(figures,
		one("scale_make", "s", 0, all+" created", made.Seconds()),
		one("scale_fill", "s", 0, all+" created and Ready", filled.Seconds()),
		one("scale_fill_cpu", "s", 0, "the operator's", use.cpu),
		one("scale_fill_rss", "MiB", maxRSS, "the operator's peak", use.peak),
	)

	// Its successor finds what was changed meanwhile, after a kill that left it the lease.
	o.end(syscall.SIGKILL)
	changed, err := c.changeGuests(ctx, n)
	if err != nil {
		return figures, err
	}
	started, use, err := c.restart(ctx, play, n, &o)
	if err != nil {
		return figures, err
	}
	figures = append(figures,
		one("scale_takeover", "s", maxStart, fmt.Sprintf("killed with its lease held and %d specs changed", changed), started.Seconds()),
		one("scale_takeover_rss", "MiB", maxRSS, "peak", use.peak),
	)

	// Nothing is changed: its successor has nothing to write.
	o.end(syscall.SIGTERM)
	before, err := c.operatorWrites()
	if err != nil {
		return figures, err
	}
	if started, use, err = c.restart(ctx, play, n, &o); err != nil {
		return figures, err
	}
	idle := use
	if err := pause(ctx, 30*time.Second); err != nil {
		return figures, err
	}
	if idle, err = o.use(ctx); err != nil {
		return figures, err
	}
	after, err := c.operatorWrites()
	if err != nil {
		return figures, err
	}
	for _, w := range after[len(before):][:min(10, len(after)-len(before))] {
		fmt.Fprintln(os.Stderr, "bench: a resync wrote:", w)
	}
	return append(figures,
		one("scale_start", "s", maxStart, "nothing changed", started.Seconds()),
		one("scale_start_cpu", "s", 0, "", use.cpu),
		one("scale_start_rss", "MiB", maxRSS, "peak", use.peak),
		one("scale_rss", "MiB", maxRSS, "30 s later", idle.rss),
		one("scale_idle_cpu", "%", 0, "of a core, over these 30 s", (idle.cpu-use.cpu)/30*100),
		one("scale_resync_writes", "", 0, "none are allowed", float64(len(after)-len(before))),
	), nil
}

// restart starts an operator and returns how long it took until it had seen to everything, and what that took.
func (c *cluster) restart(ctx context.Context, play *play, n int, into **operator) (time.Duration, use, error) {
	began := time.Now()
	o, err := c.startOperator(ctx)
	if err != nil {
		return 0, use{}, err
	}
	*into = o
	if err := o.settles(ctx, n); err != nil {
		return 0, use{}, err
	}
	if err := play.await(ctx, "guests of whose specs the status knows", func(s standing) bool { return s.ready == n && s.current == n }); err != nil {
		return 0, use{}, err
	}
	took := time.Since(began)
	u, err := o.use(ctx)
	return took, u, err
}

// use is what a process has taken: CPU in seconds, memory in MiB. heap is what lives there, and what has died since the last collection.
type use struct{ cpu, rss, peak, heap float64 }

func (o *operator) use(ctx context.Context) (use, error) {
	m, err := o.metrics(ctx)
	if err != nil {
		return use{}, err
	}
	u := use{
		cpu: m.value("process_cpu_seconds_total"), rss: m.value("process_resident_memory_bytes") / mebi,
		heap: m.value("go_memstats_heap_alloc_bytes") / mebi,
	}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", o.Pid))
	if err != nil {
		return u, err
	}
	for line := range strings.Lines(string(raw)) {
		if rest, is := strings.CutPrefix(line, "VmHWM:"); is {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				return u, err
			}
			u.peak = kib * 1024 / mebi
		}
	}
	return u, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
