package virtualmachine

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

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
	diskGauge("virtual_bytes", "What the guest sees of a disk.", func(s libvirtd.BlockStats) float64 { return float64(s.Capacity) }),
	diskGauge("allocated_bytes", "What a disk takes of the node's storage, or of its volume.", func(s libvirtd.BlockStats) float64 { return float64(s.Allocation) }),
	diskCounter("read_bytes_total", "Bytes that the guest has read of a disk.", func(s libvirtd.BlockStats) float64 { return float64(s.ReadBytes) }),
	diskCounter("written_bytes_total", "Bytes that the guest has written to a disk.", func(s libvirtd.BlockStats) float64 { return float64(s.WrittenBytes) }),
	diskCounter("reads_total", "Read requests of the guest to a disk.", func(s libvirtd.BlockStats) float64 { return float64(s.Reads) }),
	diskCounter("writes_total", "Write requests of the guest to a disk.", func(s libvirtd.BlockStats) float64 { return float64(s.Writes) }),
	diskCounter("read_seconds_total", "Time that read requests to a disk took.", func(s libvirtd.BlockStats) float64 { return s.ReadTime.Seconds() }),
	diskCounter("write_seconds_total", "Time that write requests to a disk took.", func(s libvirtd.BlockStats) float64 { return s.WriteTime.Seconds() }),
}

func diskGauge(name, help string, of func(libvirtd.BlockStats) float64) diskMetric {
	return diskMetric{prometheus.NewDesc("berth_disk_"+name, help, []string{"namespace", "virtualmachine", "disk"}, nil), prometheus.GaugeValue, of}
}

func diskCounter(name, help string, of func(libvirtd.BlockStats) float64) diskMetric {
	m := diskGauge(name, help, of)
	m.kind = prometheus.CounterValue
	return m
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

// setDisks takes note of a guest's disks by libvirt's names for them.
func (s *States) setDisks(uid types.UID, f *domain.Facts) {
	if f.Identity == nil {
		return
	}
	names := make(map[string]domain.LiveDisk, len(f.Disks))
	for _, d := range f.Disks {
		names[d.Target] = d
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if guest, known := s.of[uid]; known {
		guest.vm, guest.disks = types.NamespacedName{Namespace: f.Identity.Namespace, Name: f.Identity.Name}, names
		s.of[uid] = guest
	}
}

func (s *States) disksOf(uid types.UID) (types.NamespacedName, map[string]domain.LiveDisk) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.of[uid].vm, s.of[uid].disks
}
