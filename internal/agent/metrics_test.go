package agent

import (
	"context"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

func noStats(context.Context) (map[string][]libvirtd.BlockStats, error) { return nil, nil }

func TestMetrics(t *testing.T) {
	registry := prometheus.NewPedanticRegistry()
	m := newAgentMetrics(registry, t.TempDir(), func() bool { return true }, func() int64 { return 0 }, noStats)
	m.guests.Steps.WithLabelValues("CreateDomain").Observe(0.3)
	m.guests.StepFailures.WithLabelValues("CreateDomain", string(v1alpha1.ReasonLibvirtRefused)).Inc()
	m.guests.Exits.WithLabelValues(string(v1alpha1.ReasonPoweredOff)).Inc()
	m.pulls.Pulls.Inc()
	m.pulls.Failures.WithLabelValues(string(v1alpha1.ReasonImageNotFound)).Inc()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	if problems, err := promlint.NewWithMetricFamilies(families).Lint(); err != nil || len(problems) > 0 {
		t.Errorf("names that Prometheus would not choose: %v %v", problems, err)
	}
	var page strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&page, f); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{
		`berth_guest_exits_total{reason="PoweredOff"} 1`,
		`berth_guests{state="Unknown"} 0`,
		`berth_image_pulls_total 1`, `berth_image_pull_failures_total{reason="ImageNotFound"} 1`,
		`berth_libvirt_connected 1`,
		`berth_step_failures_total{reason="LibvirtRefused",step="CreateDomain"} 1`,
		`berth_step_duration_seconds_count{step="CreateDomain"} 1`,
	} {
		if !strings.Contains(page.String(), "\n"+want+"\n") {
			t.Errorf("no %s in\n%s", want, page.String())
		}
	}
}
