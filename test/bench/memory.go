package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
)

const mebi = 1 << 20

// memory measures what Berth's own processes take while one guest runs.
func (b *bench) memory(ctx context.Context, _ int) ([]figure, error) {
	vm := b.guest("memory")
	if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isRunning); err != nil {
		return nil, err
	}
	shims, err := b.shims(ctx)
	if err != nil {
		return nil, err
	}
	var agents, operators []float64
	for _, node := range b.nodes {
		found, err := b.workingSets(ctx, node, agentName)
		if err != nil {
			return nil, err
		}
		agents = append(agents, found...)
		if found, err = b.workingSets(ctx, node, "berth-operator"); err != nil {
			return nil, err
		}
		operators = append(operators, found...)
	}
	if len(shims) == 0 || len(agents) == 0 || len(operators) == 0 {
		return nil, fmt.Errorf("found %d shims, %d agents, %d operators", len(shims), len(agents), len(operators))
	}
	_, err = gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
	return []figure{
		of("shim_rss_mib", "MiB", 8, "", shims),
		of("agent_working_set_mib", "MiB", 40, "", agents),
		of("operator_working_set_mib", "MiB", 40, "", operators),
	}, err
}

// shims is what is resident of each shim, in MiB. Its container's working set has QEMU in it.
func (b *bench) shims(ctx context.Context) (mib []float64, err error) {
	for _, node := range b.nodes {
		found, err := onNode(ctx, node, "", "sh", "-c", "for p in $(pgrep -f '^/berth-shim'); do grep VmRSS /proc/$p/status; done")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(found) {
			fields := strings.Fields(line)
			if len(fields) < 2 {
				continue
			}
			kib, err := strconv.ParseFloat(fields[1], 64)
			if err != nil {
				return nil, fmt.Errorf("reading %q: %w", line, err)
			}
			mib = append(mib, kib*1024/mebi)
		}
	}
	return mib, nil
}

// workingSets is what cannot be taken back from the containers of a name on a node without swap, in MiB: what kubectl
// top shows and kubelet evicts by. Kubelet looks every ten seconds or so; this waits for its next look.
func (b *bench) workingSets(ctx context.Context, node, pods string) (mib []float64, err error) {
	const workingSet = "container_memory_working_set_bytes"
	for asked := time.Now(); ; {
		raw, err := b.clients.CoreV1().RESTClient().Get().Resource("nodes").Name(node).SubResource("proxy").Suffix("metrics/resource").DoRaw(ctx)
		if err != nil {
			return nil, fmt.Errorf("asking kubelet of %s: %w", node, err)
		}
		all, err := parse(bytes.NewReader(raw))
		if err != nil {
			return nil, fmt.Errorf("reading kubelet's metrics: %w", err)
		}
		mib, old := []float64(nil), false
		for _, s := range all {
			if s.name == workingSet && s.labels["namespace"] == systemNamespace && strings.HasPrefix(s.labels["pod"], pods) {
				mib = append(mib, s.value/mebi)
				old = old || s.at.Before(asked)
			}
		}
		if !old {
			return mib, nil
		}
		if err := pause(ctx, time.Second); err != nil {
			return nil, err
		}
	}
}
