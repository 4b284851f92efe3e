// Command bench measures what Berth promises, side by side with the thing to
// beat, in one run on one machine, in the lab. It asserts nothing.
//
//	eval "$(make -s lab-env)"; go run ./test/bench
//	eval "$(make -s lab-env)"; go run ./test/bench -only exec,ps
//	eval "$(make -s lab-env)"; go run ./test/bench -crowd 70
//	eval "$(make -s lab-env)"; go run ./test/bench -hostile 20
//	make bench-scale # -scale 10000, on an API server of its own
//	make bench-fat # -fat 1000, the same
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// figure is one line of the table, and one object of _out/bench.json.
type figure struct {
	Name   string  `json:"name"`
	Value  float64 `json:"value"`
	Unit   string  `json:"unit"`
	Goal   float64 `json:"goal"`
	Versus string  `json:"versus"`
	// Better is "more" where more is better, else "less".
	Better string `json:"better"`
	// Low and High are the spread of what Value is the median of.
	Low  float64 `json:"low"`
	High float64 `json:"high"`
	// Timeline is "" or the timeline of which this is a part. Value is when that began then, Took how long it took,
	// Longest how long at most, and Bare when a bare pod or virsh create is through with the same; each 0 where there
	// is no such thing.
	Timeline string  `json:"timeline,omitempty"`
	Took     float64 `json:"took,omitempty"`
	Longest  float64 `json:"longest,omitempty"`
	Bare     float64 `json:"bare,omitempty"`
}

func main() {
	n := flag.Int("n", 20, "repetitions of each measurement")
	var instead modes
	flag.StringVar(&instead.only, "only", "", "measure these alone, with commas between: starts, burst, writes, memory, tools, overlays, plugs, disk, claims, seeds, pulls, exec, ps, run, timelines")
	flag.IntVar(&instead.crowd, "crowd", 0, "measure an agent that has so many guests instead")
	flag.IntVar(&instead.hostile, "hostile", 0, "measure an agent and a guest beside so many of another tenant with hostile images instead")
	flag.IntVar(&instead.scale, "scale", 0, "measure an operator that has so many VirtualMachines instead; this takes no lab")
	flag.IntVar(&instead.fat, "fat", 0, "measure an operator before and after somebody makes so many large VirtualMachines instead; this takes no lab")
	url := flag.String("download", "", "download a file, print its digest and the MiB a second, and do nothing else")
	out := flag.String("o", "_out/bench.json", "where the figures go as JSON, beside those of other measurements")
	flag.Parse()
	if *url != "" {
		if err := download(context.Background(), *url); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
		return
	}
	if err := run(*n, instead, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// modes are what is measured instead of the usual: some of that, or else each by how many VirtualMachines, if that is not 0.
type modes struct {
	only                       string
	crowd, hostile, scale, fat int
}

func run(n int, instead modes, out string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, time.Hour)
	defer cancel()
	measure := func() ([]figure, error) { return inLab(ctx, n, instead) }
	switch {
	case instead.scale > 0:
		measure = func() ([]figure, error) { return inCluster(ctx, instead.scale, (*cluster).scale) }
	case instead.fat > 0:
		measure = func() ([]figure, error) { return inCluster(ctx, instead.fat, (*cluster).fat) }
	}
	figures, err := measure()
	return errors.Join(err, show(figures), keep(out, figures)) // what could be measured is shown all the same
}

// inLab measures guests beside bare pods and bare domains, or what is asked for instead.
func inLab(ctx context.Context, n int, instead modes) (figures []figure, failed error) {
	b, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer b.close(ctx)
	type measure struct {
		name string
		do   func(context.Context, int) ([]figure, error)
	}
	measures := []measure{
		{"starts", b.starts},
		{"burst", b.burst},
		{"writes", b.writes},
		{"memory", b.memory},
		{"tools", b.tools},
		{"overlays", b.overlays},
		{"plugs", b.plugs},
		{"disk", b.disk},
		{"claims", b.claims},
		{"seeds", b.seeds},
		{"pulls", b.pulls},
		{"exec", b.exec},
		{"ps", b.ps},
		{"run", b.run},
		{"timelines", b.timelines},
	}
	switch {
	case instead.crowd > 0:
		n, measures = instead.crowd, []measure{{"", b.crowd}}
	case instead.hostile > 0:
		n, measures = instead.hostile, []measure{{"", b.hostile}}
	}
	for _, m := range measures {
		if m.name != "" && instead.only != "" && !slices.Contains(strings.Split(instead.only, ","), m.name) {
			continue
		}
		more, err := m.do(ctx, n)
		failed = errors.Join(failed, err)
		figures = append(figures, more...)
	}
	return figures, failed
}

// show prints the table of figures, and one for each timeline.
func show(figures []figure) error {
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FIGURE\tMEDIAN\tLOW\tHIGH\tUNIT\tGOAL\tVERSUS")
	for _, f := range figures {
		if f.Timeline != "" {
			continue
		}
		goal := ""
		if f.Goal != 0 {
			goal = fmt.Sprintf("%.3g", f.Goal)
		}
		fmt.Fprintf(table, "%s\t%.3g\t%.3g\t%.3g\t%s\t%s\t%s\n", f.Name, f.Value, f.Low, f.High, f.Unit, goal, f.Versus)
	}
	return errors.Join(table.Flush(), showTimelines(os.Stdout, figures))
}

// keep writes figures beside those that other measurements have left.
func keep(path string, figures []figure) error {
	var all []figure
	raw, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(raw, &all)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	all = slices.DeleteFunc(all, func(old figure) bool {
		return slices.ContainsFunc(figures, func(f figure) bool {
			return f.Name == old.Name || f.Timeline != "" && f.Timeline == old.Timeline // which may have had other parts
		})
	})
	if raw, err = json.MarshalIndent(append(all, figures...), "", "  "); err != nil {
		return err
	}
	return os.WriteFile(path, append(raw, '\n'), 0o600)
}

// one makes a figure of a single measurement.
func one(name, unit string, goal float64, versus string, value float64) figure {
	return of(name, unit, goal, versus, []float64{value})
}

// of makes a figure of several measurements.
func of(name, unit string, goal float64, versus string, values []float64) figure {
	return figure{
		Name: name, Unit: unit, Goal: goal, Versus: versus, Better: "less",
		Value: median(values), Low: slices.Min(values), High: slices.Max(values),
	}
}

func median(values []float64) float64 { return slices.Sorted(slices.Values(values))[len(values)/2] }
