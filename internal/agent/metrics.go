package agent

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/pulls"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
)

// meters are the agent's own metrics. Guests are not told apart: kubelet's metrics of containers do that, and count QEMU.
type meters struct {
	steps          *prometheus.HistogramVec
	failures       *prometheus.CounterVec
	exits          *prometheus.CounterVec
	pulls          pulls.Metrics
	protocolErrors prometheus.Counter
	agentFailures  prometheus.Counter
	states         *states
}

func newMeters() *meters {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Namespace: "berth", Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "berth", Name: name, Help: help}, labels)
	}
	return &meters{
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: "berth", Name: "step_duration_seconds", Help: "How long the steps of guests' lives took, by step.",
			Buckets: []float64{.001, .005, .02, .1, .25, .5, 1, 2, 5, 15, 60},
		}, []string{"step"}),
		failures: counters("step_failures_total", "Steps that failed, by step and reason; they are tried again.", "step", "reason"),
		exits:    counters("guest_exits_total", "Guests that ended on this node, by reason.", "reason"),
		pulls: pulls.Metrics{
			Pulls:    counter("image_pulls_total", "Images that were brought to this node."),
			Bytes:    counter("image_pull_bytes_total", "Bytes of disks and kernels that were unpacked from images on this node."),
			Failures: counters("image_pull_failures_total", "Images that could not be brought to this node, by reason; they are tried again.", "reason"),
			Removals: counter("image_removals_total", "Images that were removed from this node because nothing used them."),
		},
		protocolErrors: counter("shim_protocol_errors_total", "Shims that did not keep to the agent's protocol."),
		agentFailures:  counter("guest_agent_failures_total", "Conversations in which a guest agent did not answer."),
		states:         &states{by: map[types.UID]string{}},
	}
}

// register makes the metrics known, with those that are read at each scrape.
func (m *meters) register(r prometheus.Registerer, stateDir string, connected func() bool) error {
	gauge := func(name, help string, labels prometheus.Labels, read func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "berth", Name: name, Help: help, ConstLabels: labels}, read)
	}
	size := func(of func(*unix.Statfs_t) uint64) func() float64 {
		return func() float64 {
			var fs unix.Statfs_t
			if unix.Statfs(stateDir, &fs) != nil {
				return 0
			}
			return float64(of(&fs)) * float64(fs.Bsize)
		}
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.steps, m.failures, m.exits, m.pulls.Pulls, m.pulls.Bytes, m.pulls.Failures, m.pulls.Removals, m.protocolErrors, m.agentFailures, m.states,
		gauge("libvirt_connected", "1 while libvirtd answers and its events flow.", nil, func() float64 {
			if connected() {
				return 1
			}
			return 0
		}),
		gauge("store_size_bytes", "Size of the file system that holds images and disks.", nil, size(func(fs *unix.Statfs_t) uint64 { return fs.Blocks })),
		gauge("store_available_bytes", "What is free of it.", nil, size(func(fs *unix.Statfs_t) uint64 { return fs.Bavail })),
	} {
		errs = append(errs, r.Register(c))
	}
	return errors.Join(errs...)
}

// stepped takes note of a step.
func (m *meters) stepped(step plan.Step, took time.Duration, err error) {
	name := stepName(step)
	if err != nil {
		m.failures.WithLabelValues(name, string(fault.ReasonOf(err))).Inc()
		return
	}
	m.steps.WithLabelValues(name).Observe(took.Seconds())
}

// stepName is a step in one word, as it stands in plan.
func stepName(step plan.Step) string {
	_, name, _ := strings.Cut(fmt.Sprintf("%T", step), ".")
	return name
}

// exited takes note of a guest's end.
func (m *meters) exited(reason v1alpha1.Reason) { m.exits.WithLabelValues(string(reason)).Inc() }

// states counts the guests of the node by what they do.
type states struct {
	mu sync.Mutex
	by map[types.UID]string
}

var (
	guestsDesc = prometheus.NewDesc("berth_guests", "Guests of this node, by what they do.", []string{"state"}, nil)
	allStates  = []string{"Blocked", "Crashed", "Paused", "Running", "Starting", "Stopped", "Unknown"}
)

// saw takes note of what a guest does; "" is that it is not here.
func (s *states) saw(uid types.UID, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == "" {
		delete(s.by, uid)
	} else {
		s.by[uid] = state
	}
}

// state is what a guest does, in a word of allStates, "" if it is not of this node.
func (g *guest) state(h *plan.Have) string {
	attached := h.Shim != nil && h.Shim.Attached
	switch {
	case !h.Kept && h.Domain == plan.DomainAbsent && !g.writable:
		return ""
	case h.Unknown != nil:
		return "Unknown"
	case h.Domain == plan.DomainPaused && !attached:
		return "Starting"
	}
	return map[plan.Domain]string{
		plan.DomainUnknown: "Unknown", plan.DomainAbsent: "Stopped", plan.DomainPaused: "Paused",
		plan.DomainRunning: "Running", plan.DomainBlocked: "Blocked", plan.DomainCrashed: "Crashed",
	}[h.Domain]
}

// Describe tells the registry of the metric.
func (s *states) Describe(descs chan<- *prometheus.Desc) { descs <- guestsDesc }

// Collect counts.
func (s *states) Collect(metrics chan<- prometheus.Metric) {
	s.mu.Lock()
	count := map[string]int{}
	for _, state := range s.by {
		count[state]++
	}
	s.mu.Unlock()
	for _, state := range allStates {
		metrics <- prometheus.MustNewConstMetric(guestsDesc, prometheus.GaugeValue, float64(count[state]), state)
	}
}
