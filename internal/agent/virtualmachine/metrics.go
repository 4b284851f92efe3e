package virtualmachine

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
)

// Metrics are what a Reconciler counts. Guests are told apart by their disks alone: of all else kubelet's metrics of
// containers do that, and count QEMU.
type Metrics struct {
	Steps              *prometheus.HistogramVec // how long, by step
	StepFailures       *prometheus.CounterVec   // by step and reason
	Exits              *prometheus.CounterVec   // of guests, by reason
	GuestAgentFailures prometheus.Counter
	States             *States
}

// observeStep takes note of a step.
func (m *Metrics) observeStep(step plan.Step, took time.Duration, err error) {
	if err != nil {
		m.StepFailures.WithLabelValues(plan.Name(step), string(fault.ReasonOf(err))).Inc()
		return
	}
	m.Steps.WithLabelValues(plan.Name(step)).Observe(took.Seconds())
}

// States counts the guests of the node by what they do, and the memory that their QEMUs took outside of their containers:
// it is the metrics berth_guests and berth_uncharged_memory_bytes.
type States struct {
	mu sync.Mutex
	of map[types.UID]standing
}

// standing is what a guest does, and its QEMU, once that is in its container.
type standing struct {
	state     string
	pid       int    // 0 is none
	uncharged uint64 // bytes
	vm        types.NamespacedName
	disks     map[string]domain.LiveDisk // by libvirt's names for them
}

// NewStates returns the metrics, of no guests yet.
func NewStates() *States { return &States{of: map[types.UID]standing{}} }

var (
	guestsDesc    = prometheus.NewDesc("berth_guests", "Guests of this node, by what they do.", []string{"state"}, nil)
	unchargedDesc = prometheus.NewDesc("berth_uncharged_memory_bytes", "Memory that QEMUs took before they came into their containers, which no berth pays for.", nil, nil)
	allStates     = []string{"Crashed", "Paused", "PausedOnIOError", "Running", "Starting", "Stopped", "Unknown"}
)

// set takes note of what a guest does; "" is that it is not here.
func (s *States) set(uid types.UID, state string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == "" {
		delete(s.of, uid)
		return
	}
	guest := s.of[uid]
	guest.state = state
	s.of[uid] = guest
}

// measure takes note of what a guest's QEMU took before it came into its container: once, as that does not change. pid is 0
// while there is no such QEMU.
func (s *States) measure(uid types.UID, pid int, uncharged func() (uint64, error)) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	guest, known := s.of[uid]
	if !known || guest.pid == pid {
		return nil
	}
	guest.pid, guest.uncharged = pid, 0
	if pid != 0 {
		guest.uncharged, err = uncharged()
	}
	if err == nil {
		s.of[uid] = guest
	}
	return err
}

// stateOf is what a guest does, in a word of allStates, "" if it is not of this node.
func stateOf(g *target, o *observed) string {
	attached := o.Shim != nil && o.Shim.Attached
	switch {
	case !o.Kept && o.Domain == plan.DomainAbsent && !g.writable:
		return ""
	case o.Unknown != nil:
		return "Unknown"
	case o.Domain == plan.DomainPaused && !attached:
		return "Starting"
	}
	return map[plan.Domain]string{
		plan.DomainUnknown: "Unknown", plan.DomainAbsent: "Stopped", plan.DomainPaused: "Paused",
		plan.DomainRunning: "Running", plan.DomainPausedOnIOError: "PausedOnIOError", plan.DomainCrashed: "Crashed",
	}[o.Domain]
}

// Describe tells the registry of the metrics.
func (s *States) Describe(descs chan<- *prometheus.Desc) {
	descs <- guestsDesc
	descs <- unchargedDesc
}

// Collect counts.
func (s *States) Collect(metrics chan<- prometheus.Metric) {
	s.mu.Lock()
	count, uncharged := map[string]int{}, uint64(0)
	for _, guest := range s.of {
		count[guest.state]++
		uncharged += guest.uncharged
	}
	s.mu.Unlock()
	metrics <- prometheus.MustNewConstMetric(unchargedDesc, prometheus.GaugeValue, float64(uncharged))
	for _, state := range allStates {
		metrics <- prometheus.MustNewConstMetric(guestsDesc, prometheus.GaugeValue, float64(count[state]), state)
	}
}
