package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const mebi = 1 << 20

// memory measures what Berth's own processes take while one guest runs.
func (b *bench) memory(ctx context.Context, _ int) ([]figure, error) {
	vm := b.guest("memory")
	if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isRunning); err != nil {
		return nil, err
	}
	var figures []figure
	for _, p := range []struct {
		name, program string
		goal          float64
	}{{"shim_rss_mib", "berth-shim", 8}, {"agent_rss_mib", "berth-agent", 40}, {"operator_rss_mib", "berth-operator", 40}} {
		var out strings.Builder
		for _, node := range b.nodes {
			found, err := onNode(ctx, node, "", "sh", "-c", fmt.Sprintf("for p in $(pgrep -f '^/%s'); do grep VmRSS /proc/$p/status; done", p.program))
			if err != nil {
				return nil, err
			}
			out.WriteString(found)
		}
		var values []float64
		for line := range strings.Lines(out.String()) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return nil, fmt.Errorf("reading %q: %w", line, err)
			}
			values = append(values, kib*1024/mebi)
		}
		if len(values) == 0 {
			return nil, fmt.Errorf("no %s runs", p.program)
		}
		figures = append(figures, of(p.name, "MiB", p.goal, "", values))
	}
	_, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
	return figures, err
}
