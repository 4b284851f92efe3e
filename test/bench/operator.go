package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"time"

	"sigs.k8s.io/yaml"
)

// operator is a berth-operator as a process of its own.
type operator struct {
	*child
	address string // of its metrics
	reader  string
}

// startOperator starts it as the chart does, but for its addresses.
func (c *cluster) startOperator(ctx context.Context) (*operator, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	o := &operator{address: listener.Addr().String(), reader: c.reader}
	if err := listener.Close(); err != nil {
		return nil, err
	}
	raw, err := os.ReadFile("config/install/operator.yaml")
	if err != nil {
		return nil, err
	}
	var deployment struct {
		Spec struct {
			Template struct {
				Spec struct {
					Containers []struct {
						Args []string
						Env  []struct{ Name, Value string }
					}
				}
			}
		}
	}
	if err := yaml.Unmarshal(raw, &deployment); err != nil {
		return nil, fmt.Errorf("reading the operator's Deployment: %w", err)
	}
	container := deployment.Spec.Template.Spec.Containers[0]
	for _, e := range container.Env {
		if err := os.Setenv(e.Name, e.Value); err != nil {
			return nil, err
		}
	}
	args := slices.Concat(container.Args, []string{"-kubeconfig=" + c.kubeconfig, "-metrics-address=" + o.address, "-health-address=0"})
	o.child, err = c.start("_out/berth-operator", args...)
	return o, err
}

func (o *operator) metrics(ctx context.Context) (samples, error) {
	return scrape(ctx, ours, "https://"+o.address+"/metrics", o.reader)
}

// settles waits until the operator has looked at each of n VirtualMachines and has nothing more to look at.
func (o *operator) settles(ctx context.Context, n int) error {
	for {
		if err := pause(ctx, 100*time.Millisecond); err != nil {
			return fmt.Errorf("waiting for the operator: %w", err)
		}
		m, err := o.metrics(ctx)
		if err != nil {
			continue // it does not listen yet
		}
		of := func(label string) func(map[string]string) bool {
			return func(labels map[string]string) bool { return labels[label] == "virtualmachine" }
		}
		if m.sum("controller_runtime_reconcile_total", of("controller")) >= float64(n) &&
			m.sum("workqueue_depth", of("name")) == 0 && m.sum("controller_runtime_active_workers", of("controller")) == 0 {
			return nil
		}
	}
}
