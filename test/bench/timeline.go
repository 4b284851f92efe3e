package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// waitForShim is the time from CreateDomain's end until MoveToCgroup begins: what kubelet and the container runtime
// still need to make the sandbox and to start the shim in it.
const waitForShim = "wait for sandbox and shim"

// span is a part of a start or an end: when it began, counted from the request, and how long it took.
type span struct {
	name     string
	at, took time.Duration
}

// timelines measures what starts and ends of guests are made of, beside those of bare pods and virsh create.
func (b *bench) timelines(ctx context.Context, n int) (figures []figure, err error) {
	quiet, err := b.logSteps(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, quiet()) }()

	var starts, ends, bareStarts, bareEnds [][]span
	for i := range n + 1 { // the first warms caches and does not count
		vm, pod := b.guest(fmt.Sprintf("line-%d", i)), b.pod(fmt.Sprintf("line-pod-%d", i))
		guest := &life{of: vm, start: []sight{podStart, vmStart}, end: []sight{podEnd, vmEnd}}
		guest.meanwhile = func() error { return b.describe(ctx, vm, "bench") }
		bare := &life{of: pod, start: []sight{podStart}, end: []sight{podEnd}}
		for _, l := range []*life{guest, bare} {
			if err := b.live(ctx, l); err != nil {
				return nil, err
			}
		}
		began := time.Now()
		if err := b.create(ctx, "bench"); err != nil {
			return nil, err
		}
		domain := span{name: "CreateDomain", took: time.Since(began)}
		if err := b.destroy(ctx, "bench"); err != nil {
			return nil, err
		}
		steps, err := b.steps(ctx, vm)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue
		}
		guest.seen = append(guest.seen, steps...)
		now := time.Now()
		starts = append(starts, timeline(guest.created, guest.deleted, guest.seen))
		ends = append(ends, timeline(guest.deleted, now, guest.seen))
		bareStarts = append(bareStarts, append(timeline(bare.created, bare.deleted, bare.seen), domain))
		bareEnds = append(bareEnds, timeline(bare.deleted, now, bare.seen))
	}
	return append(lines("start", starts, bareStarts), lines("delete", ends, bareEnds)...), nil
}

// timeline is what was done or seen between two moments, in order. What was done several times stands where it was done
// first, and takes as long as all of them.
func timeline(from, to time.Time, seen []moment) []span {
	var spans []span
	find := func(name string) int { return slices.IndexFunc(spans, func(s span) bool { return s.name == name }) }
	for _, m := range seen {
		if m.end.Before(from) || m.end.After(to) {
			continue
		}
		at := m.end.Sub(from) - m.took
		if i := find(m.name); i >= 0 {
			spans[i].at, spans[i].took = min(spans[i].at, at), spans[i].took+m.took
		} else {
			spans = append(spans, span{m.name, at, m.took})
		}
	}
	if create, move := find("CreateDomain"), find("MoveToCgroup"); create >= 0 && move >= 0 {
		at := spans[create].at + spans[create].took
		spans = append(spans, span{waitForShim, at, spans[move].at - at})
	}
	slices.SortStableFunc(spans, func(a, b span) int { return cmp.Compare(a.at, b.at) })
	return spans
}

// lines are the figures of several timelines, in order, beside when bare ones are through with the same.
func lines(table string, guests, bare [][]span) []figure {
	at := gather(guests, func(s span) time.Duration { return s.at })
	took := gather(guests, func(s span) time.Duration { return s.took })
	beside := gather(bare, func(s span) time.Duration { return s.at + s.took })
	var figures []figure
	for name, values := range at {
		f := of(table+" "+name, "s", 0, "", values)
		f.Timeline, f.Took, f.Longest = table, median(took[name]), slices.Max(took[name])
		if others, has := beside[name]; has {
			f.Bare = median(others)
		}
		figures = append(figures, f)
	}
	slices.SortFunc(figures, func(a, b figure) int { return cmp.Or(cmp.Compare(a.Value, b.Value), cmp.Compare(a.Name, b.Name)) })
	return figures
}

// gather sorts a value of all spans by name, in seconds.
func gather(timelines [][]span, value func(span) time.Duration) map[string][]float64 {
	all := map[string][]float64{}
	for _, spans := range timelines {
		for _, s := range spans {
			all[s.name] = append(all[s.name], value(s).Seconds())
		}
	}
	return all
}

// showTimelines prints a table for each timeline, in milliseconds.
func showTimelines(to io.Writer, figures []figure) error {
	table, last := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0), ""
	ms := func(seconds float64) string {
		if seconds == 0 {
			return ""
		}
		return fmt.Sprintf("%.1f", seconds*1000)
	}
	for _, f := range figures {
		if f.Timeline == "" {
			continue
		}
		if f.Timeline != last {
			last = f.Timeline
			fmt.Fprintf(table, "\n%s, ms\tAT\tLOW\tHIGH\tTAKES\tLONGEST\tBARE\n", strings.ToUpper(last))
		}
		name, _ := strings.CutPrefix(f.Name, f.Timeline+" ")
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, ms(f.Value), ms(f.Low), ms(f.High), ms(f.Took), ms(f.Longest), ms(f.Bare))
	}
	return table.Flush()
}
