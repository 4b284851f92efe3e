package virtualmachine

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/libvirtd"
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

// set takes note of what a guest does; "" is that it is not here. What its disks are stays as it was while its domain does
// not say.
func (s *States) set(uid types.UID, state string, f *domain.Facts) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if state == "" {
		delete(s.of, uid)
		return
	}
	guest := s.of[uid]
	guest.state = state
	if f.Identity != nil {
		guest.vm, guest.disks = types.NamespacedName{Namespace: f.Identity.Namespace, Name: f.Identity.Name}, map[string]domain.LiveDisk{}
		for _, d := range f.Disks {
			guest.disks[d.Target] = d
		}
	}
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
func (s *States) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(s, descs) }

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

// scrapeTimeout is how long libvirt may take to tell of all disks; without its answer there are no metrics of them.
const scrapeTimeout = 4 * time.Second

// DiskMetrics are what the disks of the node's running guests do, as libvirt tells it at each scrape.
type DiskMetrics struct {
	States *States
	Stats  BlockStats
}

// BlockStats is what the disks of all domains did, by the domains' UUIDs.
type BlockStats = func(context.Context) (map[string][]libvirtd.BlockStats, error)

// diskMetric is one of DiskMetrics.
type diskMetric struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	of   func(libvirtd.BlockStats) float64
}

var diskMetrics = []diskMetric{
	ofDisks("virtual_bytes", "What the guest sees of a disk.", prometheus.GaugeValue, func(s libvirtd.BlockStats) float64 { return float64(s.Capacity) }),
	ofDisks("allocated_bytes", "What a disk takes of the node's storage, or of its volume.", prometheus.GaugeValue, func(s libvirtd.BlockStats) float64 { return float64(s.Allocation) }),
	ofDisks("read_bytes_total", "Bytes that the guest has read of a disk.", prometheus.CounterValue, func(s libvirtd.BlockStats) float64 { return float64(s.ReadBytes) }),
	ofDisks("written_bytes_total", "Bytes that the guest has written to a disk.", prometheus.CounterValue, func(s libvirtd.BlockStats) float64 { return float64(s.WrittenBytes) }),
	ofDisks("reads_total", "Read requests of the guest to a disk.", prometheus.CounterValue, func(s libvirtd.BlockStats) float64 { return float64(s.Reads) }),
	ofDisks("writes_total", "Write requests of the guest to a disk.", prometheus.CounterValue, func(s libvirtd.BlockStats) float64 { return float64(s.Writes) }),
	ofDisks("read_seconds_total", "Time that read requests to a disk took.", prometheus.CounterValue, func(s libvirtd.BlockStats) float64 { return s.ReadTime.Seconds() }),
	ofDisks("write_seconds_total", "Time that write requests to a disk took.", prometheus.CounterValue, func(s libvirtd.BlockStats) float64 { return s.WriteTime.Seconds() }),
}

func ofDisks(name, help string, kind prometheus.ValueType, of func(libvirtd.BlockStats) float64) diskMetric {
	return diskMetric{prometheus.NewDesc("berth_disk_"+name, help, []string{"namespace", "virtualmachine", "disk"}, nil), kind, of}
}

// Describe tells the registry of the metrics.
func (m DiskMetrics) Describe(descs chan<- *prometheus.Desc) {
	for _, d := range diskMetrics {
		descs <- d.desc
	}
}

// Collect asks libvirt.
func (m DiskMetrics) Collect(metrics chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	stats, err := m.Stats(ctx)
	if err != nil {
		ctrl.Log.WithName("host").V(1).Info("Leaving out the metrics of disks", "err", err.Error())
		return
	}
	for uuid, disks := range stats {
		vm, names := m.States.disksOf(types.UID(uuid))
		for _, s := range disks {
			disk, known := names[s.Target]
			if !known { // its seed, or a guest of somebody else
				continue
			}
			s.Allocation = allocated(disk.Path, s.Capacity)
			for _, d := range diskMetrics {
				metrics <- prometheus.MustNewConstMetric(d.desc, d.kind, d.of(s), vm.Namespace, vm.Name, disk.Name)
			}
		}
	}
}

// allocated is what a disk takes, in bytes: libvirt tells only how far QEMU has written since its start. A block device is
// the guest's as a whole. The file may be a tenant's, and is not opened.
func allocated(path string, capacity uint64) uint64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return capacity
	}
	return uint64(st.Blocks) * 512 //nolint:gosec // no file has fewer than none
}

func (s *States) disksOf(uid types.UID) (types.NamespacedName, map[string]domain.LiveDisk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[uid].vm, s.of[uid].disks
}
