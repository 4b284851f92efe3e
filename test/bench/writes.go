package main

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// writeVerbs are how the API server calls requests that change something, in its metrics.
var writeVerbs = []string{"POST", "PUT", "PATCH", "APPLY", "DELETE"}

// writes counts what a guest's life writes to the API server, whoever does, beyond a bare pod's. Leases are not
// counted, nor what nodes and hosts tell of themselves; Events are.
func (b *bench) writes(ctx context.Context, n int) ([]figure, error) {
	var beyond, guests, pods []float64
	for i := range n/4 + 1 {
		name := fmt.Sprintf("writes-%d", i)
		guest, err := b.written(ctx, func() error {
			vm := b.guest(name)
			if _, err := timed(ctx, b, &v1alpha1.VirtualMachineList{}, vm, isReadyGuest); err != nil {
				return err
			}
			_, err := gone(ctx, b, &v1alpha1.VirtualMachineList{}, vm)
			return err
		})
		if err != nil {
			return nil, err
		}
		pod, err := b.written(ctx, func() error {
			pod := b.pod(name)
			if _, err := timed(ctx, b, &corev1.PodList{}, pod, isReady); err != nil {
				return err
			}
			_, err := gone(ctx, b, &corev1.PodList{}, pod)
			return err
		})
		if err != nil {
			return nil, err
		}
		guests, pods, beyond = append(guests, guest), append(pods, pod), append(beyond, guest-pod)
	}
	return []figure{
		of("api_writes_over_pod", "", 10, "a bare pod's life, Events included", beyond),
		of("api_writes", "", 0, "", guests),
		of("api_writes_pod", "", 0, "", pods),
	}, nil
}

// written is how many writes the API server took while something was done.
func (b *bench) written(ctx context.Context, do func() error) (float64, error) {
	before, err := b.countWrites(ctx)
	if err != nil {
		return 0, err
	}
	if err := do(); err != nil {
		return 0, err
	}
	after, err := b.countWrites(ctx)
	return after - before, err
}

func (b *bench) countWrites(ctx context.Context) (float64, error) {
	client, err := rest.HTTPClientFor(b.config)
	if err != nil {
		return 0, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, b.config.Host+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	answer, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer answer.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(answer.Body)
	if err != nil {
		return 0, fmt.Errorf("reading the API server's metrics: %w", err)
	}
	total := 0.0
	for _, m := range families["apiserver_request_total"].GetMetric() {
		labels := map[string]string{}
		for _, l := range m.GetLabel() {
			labels[l.GetName()] = l.GetValue()
		}
		counts := []string{"pods", "virtualmachines", "events"}
		if slices.Contains(writeVerbs, labels["verb"]) && slices.Contains(counts, labels["resource"]) {
			total += m.GetCounter().GetValue()
		}
	}
	return total, nil
}
