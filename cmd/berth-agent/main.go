// Command berth-agent runs the guests of one node. It runs as a DaemonSet. `berth-agent worker` is the program that it
// starts, confined, to make disks on volumes.
package main

import (
	"context"
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
	"github.com/berth-dev/berth/internal/host/cgroup" //nolint:depguard // the process re-executes itself before anything else runs
	"github.com/berth-dev/berth/internal/host/sandbox"
	"github.com/berth-dev/berth/internal/worker"
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
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := sandbox.Enter(); err != nil {
			return err
		}
		dir, image := os.NewFile(3, "volume"), os.NewFile(4, "image")
		defer image.Close() // held until then: without a seed, descriptor 4 may be Go's own
		return worker.Run(context.Background(), os.Stdin, os.Stdout, dir, image)
	}
	if err := cgroup.EnterHostNamespace(); err != nil {
		return fmt.Errorf("entering the host's cgroup namespace: %w", err)
	}
	o := agent.Options{Version: version}
	var insecure string
	size, reserve, unsized := quantity("256Gi"), quantity("0"), quantity("10Gi")
	var verbosity int
	flag.StringVar(&o.Node, "node", os.Getenv("NODE_NAME"), "name of the node; $NODE_NAME by default")
	flag.StringVar((*string)(&o.Acceleration), "acceleration", string(v1alpha1.AccelerationKVM), "KVM or Emulation")
	flag.BoolVar(&o.RequireConfinement, "require-confinement", false, "start no guest unless libvirt confines QEMU by seccomp and by AppArmor or SELinux")
	flag.DurationVar(&o.KeepStrayDisks, "keep-stray-disks", 0, "how long disks are kept whose VirtualMachine nobody knows; 0 is for ever")
	flag.StringVar(&o.StateDir, "state-dir", "/var/lib/berth", "directory of images and disks")
	flag.StringVar(&o.RunDir, "run-dir", "/run/berth", "runtime state directory, on tmpfs")
	flag.StringVar(&o.LibvirtDir, "libvirt-dir", "/run/libvirt", "directory of libvirt's sockets")
	flag.StringVar(&o.RuntimeSocket, "runtime-socket", "/run/containerd/containerd.sock", "CRI socket of the container runtime")
	flag.StringVar(&insecure, "insecure-registries", "", "registries to reach by plain HTTP: host:port, comma-separated")
	flag.Func("registries", `mirrors and certificates of registries: [{"host": "…", "mirrors": ["https://…"], "ca": "PEM"}]`,
		func(list string) error { return o.Registries.UnmarshalText([]byte(list)) })
	flag.TextVar(&o.GuestSubnet, "guest-subnet", netip.MustParsePrefix("10.0.2.0/24"), "private subnet between a berth and its guest")
	flag.Var(size, "max-image-size", "largest unpacked size of an image")
	flag.IntVar(&o.Pulls.PerNode, "max-pulls", 6, "how many images are pulled at once")
	flag.IntVar(&o.Pulls.PerNamespace, "max-pulls-per-namespace", 2, "how many of them for VMs of one namespace")
	flag.IntVar(&o.Reserve.Percent, "reserve-percent", 10, "part of -state-dir's file system in percent that pulls leave free, for guests' writes")
	flag.Var(reserve, "reserve-size", "size that pulls leave free, if that is more")
	flag.Var(unsized, "max-unsized-disk", "largest size of a disk whose spec has none")
	flag.DurationVar(&o.Images.MaxUnusedAge, "keep-images", 7*24*time.Hour, "how long an image is kept after its last use; 0 is for ever")
	flag.IntVar(&o.Images.MaxUsagePercent, "full-percent", 85, "usage of -state-dir's file system in percent above which unused images are removed early; 100 disables it")
	flag.IntVar(&o.Images.LowUsagePercent, "low-percent", 75, "usage in percent at which that ends; -full-percent if that is less")
	flag.StringVar(&o.GuestProgram, "guest-program", "/berth-guest", "path of the program berth-guest, which guests are offered")
	flag.StringVar(&o.MetricsAddress, "metrics-address", ":9760", "address of /metrics: HTTPS, guarded by TokenReview and SubjectAccessReview; 0 disables it")
	flag.StringVar(&o.HealthAddress, "health-address", "127.0.0.1:9761", "address of /healthz and /readyz; 0 disables them")
	flag.IntVar(&verbosity, "v", 0, "log level: 0 what matters, 1 decisions, 2 calls")
	flag.Parse()

	ctrl.SetLogger(logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.Level(-verbosity)})))
	o.InsecureRegistries = strings.FieldsFunc(insecure, func(r rune) bool { return r == ',' || r == ' ' })
	o.MaxImageSize, o.Reserve.Bytes, o.MaxUnsizedDisk = size.Value(), reserve.Value(), unsized.Value()
	switch i := o.Images; {
	case o.Acceleration != v1alpha1.AccelerationKVM && o.Acceleration != v1alpha1.AccelerationEmulation:
		return fmt.Errorf("-acceleration %q: write KVM or Emulation", o.Acceleration)
	case o.Node == "":
		return fmt.Errorf("-node is missing: name the node")
	case !o.GuestSubnet.Addr().Is4() || o.GuestSubnet.Bits() > 30:
		return fmt.Errorf("-guest-subnet %s: write an IPv4 prefix of at most 30 bits, such as 10.0.2.0/24", o.GuestSubnet)
	case o.Reserve.Bytes < 0 || o.Reserve.Percent < 0 || o.Reserve.Percent > 99:
		return fmt.Errorf("-reserve-size is %s, -reserve-percent is %d: write a size of at least 0, and a percentage from 0 to 99", reserve, o.Reserve.Percent)
	case o.Pulls.PerNode < 1 || o.Pulls.PerNamespace < 1:
		return fmt.Errorf("-max-pulls is %d, -max-pulls-per-namespace is %d: write numbers of at least 1", o.Pulls.PerNode, o.Pulls.PerNamespace)
	case i.MaxUnusedAge < 0 || i.MaxUsagePercent < 0 || i.MaxUsagePercent > 100 || i.LowUsagePercent < 0:
		return fmt.Errorf("-keep-images is %s, -full-percent is %d, -low-percent is %d: write a duration of at least 0, and percentages from 0 to 100", i.MaxUnusedAge, i.MaxUsagePercent, i.LowUsagePercent)
	case o.KeepStrayDisks < 0:
		return fmt.Errorf("-keep-stray-disks is %s: write a duration of at least 0", o.KeepStrayDisks)
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("loading the kubeconfig: %w", err)
	}
	return agent.Run(ctrl.SetupSignalHandler(), config, o)
}

// quantity is a flag's value, in bytes.
func quantity(fallback string) *resource.QuantityValue {
	return &resource.QuantityValue{Quantity: resource.MustParse(fallback)}
}
