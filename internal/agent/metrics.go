package agent

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/agent/pulls"
	"github.com/berth-dev/berth/internal/agent/virtualmachine"
)

// agentMetrics are what the agent counts itself.
type agentMetrics struct {
	guests         virtualmachine.Metrics
	pulls          pulls.Metrics
	protocolErrors prometheus.Counter
}

// newAgentMetrics makes the metrics known, with those that are read at each scrape.
func newAgentMetrics(r prometheus.Registerer, stateDir string, connected func() bool, strayBytes func() int64, disks virtualmachine.BlockStats) *agentMetrics {
	metric := promauto.With(r)
	counter := func(name, help string) prometheus.Counter {
		return metric.NewCounter(prometheus.CounterOpts{Namespace: "berth", Name: name, Help: help})
	}
	counters := func(name, help string, labels ...string) *prometheus.CounterVec {
		return metric.NewCounterVec(prometheus.CounterOpts{Namespace: "berth", Name: name, Help: help}, labels)
	}
	gauge := func(name, help string, read func() float64) {
		metric.NewGaugeFunc(prometheus.GaugeOpts{Namespace: "berth", Name: name, Help: help}, read)
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
	gauge("libvirt_connected", "1 while libvirtd answers and its events flow.", func() float64 {
		if connected() {
			return 1
		}
		return 0
	})
	gauge("store_size_bytes", "Size of the file system that holds images and disks.", size(func(fs *unix.Statfs_t) uint64 { return fs.Blocks }))
	gauge("store_available_bytes", "What is free of it.", size(func(fs *unix.Statfs_t) uint64 { return fs.Bavail }))
	gauge("stray_disk_bytes", "What disks take whose VirtualMachine nobody knows.", func() float64 { return float64(strayBytes()) })
	states := virtualmachine.NewStates()
	r.MustRegister(states, virtualmachine.DiskMetrics{States: states, Stats: disks})
	return &agentMetrics{
		guests: virtualmachine.Metrics{
			Steps: metric.NewHistogramVec(prometheus.HistogramOpts{
				Namespace: "berth", Name: "step_duration_seconds", Help: "How long the steps of guests' lives took, by step.",
				Buckets: []float64{.001, .005, .02, .1, .25, .5, 1, 2, 5, 15, 60},
			}, []string{"step"}),
			StepFailures:       counters("step_failures_total", "Steps that failed, by step and reason; they are tried again.", "step", "reason"),
			Exits:              counters("guest_exits_total", "Guests that ended on this node, by reason.", "reason"),
			GuestAgentFailures: counter("guest_agent_failures_total", "Conversations in which a guest agent did not answer."),
			States:             states,
		},
		pulls: pulls.Metrics{
			Pulls:    counter("image_pulls_total", "Images that were brought to this node."),
			Bytes:    counter("image_pull_bytes_total", "Bytes of disks and kernels that were unpacked from images on this node."),
			Failures: counters("image_pull_failures_total", "Images that could not be brought to this node, by reason; they are tried again.", "reason"),
			Removals: counter("image_removals_total", "Images that were removed from this node because nothing used them."),
		},
		protocolErrors: counter("shim_protocol_errors_total", "Shims that did not keep to the agent's protocol."),
	}
}
