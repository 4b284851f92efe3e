// Command berth-operator reconciles Berth's kinds. It runs as a Deployment.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/controllers"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "berth-operator:", err)
		os.Exit(1)
	}
}

func run() error {
	var o controllers.Options
	var pullSecrets, annotations string
	cpuRequest := resource.QuantityValue{Quantity: resource.MustParse("100m")}
	unsizedDisk := resource.QuantityValue{Quantity: resource.MustParse("10Gi")}
	var verbosity int
	flag.StringVar(&o.Berth.ShimImage, "shim-image", "", "image of berth-shim (required)")
	flag.StringVar((*string)(&o.Berth.PullPolicy), "shim-pull-policy", string(corev1.PullIfNotPresent), "imagePullPolicy of berth-shim")
	flag.StringVar(&pullSecrets, "shim-pull-secrets", "", "imagePullSecrets of berths, in the guest's namespace, comma-separated")
	flag.Var(&cpuRequest, "cpu-request-per-vcpu", "CPU request of a berth for each vCPU")
	flag.Var(&unsizedDisk, "max-unsized-disk", "ephemeral-storage that a berth requests for a disk without size")
	flag.Int64Var(&o.Berth.VolumeGroup, "volume-group", 0x70010000, "group that owns the file systems of claims, the fsGroup of their berths")
	flag.BoolVar(&o.Berth.Emulation, "emulation", false, "add the memory that emulation needs to the requests of berths")
	flag.StringVar(&annotations, "allowed-annotations", "", "annotations that VirtualMachines may set on their berths, comma-separated; a trailing * matches any rest")
	flag.StringVar(&o.Namespace, "namespace", "berth-system", "namespace of the leader election lease")
	flag.BoolVar(&o.LeaderElection, "leader-elect", true, "elect a leader among the replicas")
	flag.StringVar(&o.Identity, "identity", "", "leader election identity of this replica, the same after a restart, such as its pod's name")
	flag.StringVar(&o.MetricsAddress, "metrics-address", ":8443", "address of /metrics: HTTPS, guarded by TokenReview and SubjectAccessReview; 0 disables it")
	flag.StringVar(&o.HealthAddress, "health-address", ":8081", "address of /healthz and /readyz; 0 disables them")
	flag.IntVar(&verbosity, "v", 0, "log level: 0 what matters, 1 decisions, 2 calls")
	flag.Parse()

	ctrl.SetLogger(logr.FromSlogHandler(slog.NewJSONHandler(os.Stderr, &slog.HandlerOptions{Level: slog.Level(-verbosity)})))
	if o.Berth.ShimImage == "" {
		return fmt.Errorf("-shim-image is missing: name the image of berth-shim")
	}
	o.Berth.CPURequest, o.Berth.UnsizedDisk = cpuRequest.Quantity, unsizedDisk.Quantity
	o.Berth.PullSecrets = list(pullSecrets)
	o.Berth.AllowedAnnotations = list(annotations)
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("loading the kubeconfig: %w", err)
	}
	return controllers.Run(ctrl.SetupSignalHandler(), config, o)
}

func list(commas string) []string {
	return strings.FieldsFunc(commas, func(r rune) bool { return r == ',' || r == ' ' })
}
