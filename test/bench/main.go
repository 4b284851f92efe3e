// Command bench measures what Berth promises, side by side with the thing to
// beat, in one run on one machine, in the lab. It asserts nothing.
//
//	eval "$(make -s lab-env)"; go run ./test/bench
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
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
}

func main() {
	n := flag.Int("n", 20, "repetitions of each measurement")
	out := flag.String("o", "_out/bench.json", "where the figures go as JSON")
	flag.Parse()
	if err := run(*n, *out); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(n int, out string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	b, err := open(ctx)
	if err != nil {
		return err
	}
	defer b.close()
	var figures []figure
	var failed error // what could be measured is shown all the same
	for _, measure := range []func(context.Context, int) ([]figure, error){b.starts, b.burst, b.writes, b.memory} {
		more, err := measure(ctx, n)
		failed = errors.Join(failed, err)
		figures = append(figures, more...)
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "FIGURE\tMEDIAN\tLOW\tHIGH\tUNIT\tGOAL\tVERSUS")
	for _, f := range figures {
		goal := ""
		if f.Goal != 0 {
			goal = fmt.Sprintf("%.3g", f.Goal)
		}
		fmt.Fprintf(table, "%s\t%.3g\t%.3g\t%.3g\t%s\t%s\t%s\n", f.Name, f.Value, f.Low, f.High, f.Unit, goal, f.Versus)
	}
	if err := table.Flush(); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(failed, os.WriteFile(out, append(raw, '\n'), 0o600))
}

// of makes a figure of several measurements.
func of(name, unit string, goal float64, versus string, values []float64) figure {
	sorted := slices.Clone(values)
	slices.Sort(sorted)
	return figure{
		Name: name, Unit: unit, Goal: goal, Versus: versus, Better: "less",
		Value: sorted[len(sorted)/2], Low: sorted[0], High: sorted[len(sorted)-1],
	}
}
