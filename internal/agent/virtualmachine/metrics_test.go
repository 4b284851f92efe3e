package virtualmachine

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
)

func TestMetrics(t *testing.T) {
	m, registry := newMetrics(), prometheus.NewPedanticRegistry()
	registry.MustRegister(m.Steps, m.StepFailures, m.States)
	m.States.set("a", "Running", &domain.Facts{})
	m.States.set("b", "Running", &domain.Facts{})
	m.States.set("b", "Stopped", &domain.Facts{})
	m.States.set("c", "Running", &domain.Facts{})
	m.States.set("c", "", &domain.Facts{})
	taken := func(bytes uint64, err error) func() (uint64, error) {
		return func() (uint64, error) { return bytes, err }
	}
	for _, x := range []struct {
		uid types.UID
		pid int
		of  func() (uint64, error)
	}{
		{"a", 1, taken(30, nil)}, {"a", 1, taken(70, nil)}, // what is known is not read again
		{"b", 2, taken(500, nil)}, {"b", 0, nil}, // it has ended
		{"c", 3, taken(9000, nil)}, // which is not here any more
	} {
		if err := m.States.measure(x.uid, x.pid, x.of); err != nil {
			t.Error(err)
		}
	}
	if err := m.States.measure("b", 4, taken(80000, errors.New("gone"))); err == nil {
		t.Error("what cannot be read is no error")
	}
	m.observeStep(plan.CreateDomain{}, 300*time.Millisecond, nil)
	m.observeStep(plan.CreateDomain{}, time.Second, fault.NewTransient(v1alpha1.ReasonLibvirtRefused, errors.New("no")))

	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var page strings.Builder
	for _, f := range families {
		if _, err := expfmt.MetricFamilyToText(&page, f); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{
		"berth_uncharged_memory_bytes 30", `berth_guests{state="Running"} 1`, `berth_guests{state="Stopped"} 1`, `berth_guests{state="Unknown"} 0`,
		`failures{reason="LibvirtRefused",step="CreateDomain"} 1`, `steps_count{step="CreateDomain"} 1`,
	} {
		if !strings.Contains(page.String(), "\n"+want+"\n") {
			t.Errorf("no %s in\n%s", want, page.String())
		}
	}
}
