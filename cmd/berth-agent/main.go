// Command berth-agent runs the guests of one node. It runs as a DaemonSet.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/api/resource"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent"
	"github.com/berth-dev/berth/internal/host/cgroup" //nolint:depguard // the process starts anew before anything of it runs
)

// version is set by the linker.
var version = "dev"

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "berth-agent:", err)
		os.Exit(1)
	}
}

func run() error {
	if err := cgroup.EnterHostNamespace(); err != nil {
		return fmt.Errorf("entering the host's cgroup namespace: %w", err)
	}
	o := agent.Options{Version: version}
	var acceleration, registries, subnet, size string
	var verbosity int
	flag.StringVar(&o.Node, "node", os.Getenv("NODE_NAME"), "name of the node; $NODE_NAME by default")
	flag.StringVar(&acceleration, "acceleration", string(v1alpha1.AccelerationKVM), "KVM or Emulation")
	flag.StringVar(&o.StateDir, "state-dir", "/var/lib/berth", "directory of images and disks")
	flag.StringVar(&o.RunDir, "run-dir", "/run/berth", "runtime state, which a reboot clears; a directory on tmpfs")
	flag.StringVar(&o.LibvirtDir, "libvirt-dir", "/run/libvirt", "libvirt's sockets")
	flag.StringVar(&o.RuntimeSocket, "runtime-socket", "/run/containerd/containerd.sock", "the container runtime's CRI socket")
	flag.StringVar(&registries, "insecure-registries", "", "registries that are spoken to by plain HTTP: host:port, comma-separated")
	flag.StringVar(&subnet, "guest-subnet", "10.0.2.0/24", "private subnet between a berth and its guest")
	flag.StringVar(&size, "max-image-size", "256Gi", "largest size of what is unpacked from an image")
	flag.DurationVar(&o.Images.Keep, "keep-images", 7*24*time.Hour, "how long an image that no guest uses is kept; 0 is for ever")
	flag.IntVar(&o.Images.Full, "full-percent", 85, "how full the file system of -state-dir may be before unused images go early; 100 is never")
	flag.StringVar(&o.MetricsAddress, "metrics-address", ":9760", "address of /metrics: HTTPS, guarded by TokenReview and SubjectAccessReview; 0 disables it")
	flag.StringVar(&o.HealthAddress, "health-address", "127.0.0.1:9761", "address of /healthz and /readyz; 0 disables them")
	flag.IntVar(&verbosity, "v", 0, "log level: 0 what matters, 1 decisions, 2 calls")
	flag.Parse()

	ctrl.SetLogger(logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.Level(-verbosity)})))
	o.Acceleration = v1alpha1.Acceleration(acceleration)
	if o.Acceleration != v1alpha1.AccelerationKVM && o.Acceleration != v1alpha1.AccelerationEmulation {
		return fmt.Errorf("-acceleration %q: write KVM or Emulation", acceleration)
	}
	if o.Node == "" {
		return fmt.Errorf("-node is missing: name the node")
	}
	o.InsecureRegistries = strings.FieldsFunc(registries, func(r rune) bool { return r == ',' || r == ' ' })
	var err error
	if o.GuestSubnet, err = netip.ParsePrefix(subnet); err != nil || !o.GuestSubnet.Addr().Is4() || o.GuestSubnet.Bits() > 30 {
		return fmt.Errorf("-guest-subnet %q: write an IPv4 prefix of at most 30 bits, such as 10.0.2.0/24", subnet)
	}
	limit, err := resource.ParseQuantity(size)
	if err != nil {
		return fmt.Errorf("-max-image-size %q: %w", size, err)
	}
	o.MaxImageSize = limit.Value()
	if o.Images.Keep < 0 || o.Images.Full < 0 || o.Images.Full > 100 {
		return fmt.Errorf("-keep-images is %s, -full-percent is %d: write no less than 0, and at most 100 percent", o.Images.Keep, o.Images.Full)
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("reading the cluster's address: %w", err)
	}
	return agent.Run(ctrl.SetupSignalHandler(), config, o)
}
