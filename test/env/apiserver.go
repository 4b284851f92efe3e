package env

import (
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/berth-dev/berth/internal/kube"
)

// Root is the path of this repository.
func Root() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Join(filepath.Dir(file), "..", "..")
}

// apiServerTimeout bounds the start and the stop of a kube-apiserver, on a machine that does much else beside.
const apiServerTimeout = 3 * time.Minute

// APIServer starts a kube-apiserver with Berth's CRDs for the time of a test.
func APIServer(t testing.TB) (*rest.Config, client.Client) {
	t.Helper()
	Need(t, "KUBEBUILDER_ASSETS", "a directory with kube-apiserver and etcd")
	server := &envtest.Environment{
		CRDDirectoryPaths: crds(t), ErrorIfCRDPathMissing: true,
		ControlPlaneStartTimeout: apiServerTimeout, ControlPlaneStopTimeout: apiServerTimeout,
	}
	t.Cleanup(func() { // also after a start that failed half-way
		if err := server.Stop(); err != nil {
			t.Errorf("stopping kube-apiserver: %v", err)
		}
	})
	config, err := server.Start()
	if err != nil {
		t.Fatalf("starting kube-apiserver: %v", err)
	}
	c, err := client.New(config, client.Options{Scheme: kube.Scheme()})
	if err != nil {
		t.Fatalf("making client: %v", err)
	}
	return config, c
}

func crds(t testing.TB) []string {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(Root(), "charts", "berth", "generated", "crd-*.yaml"))
	if err != nil || len(paths) == 0 {
		t.Fatalf("finding CRDs: %v; run make generate", err)
	}
	return paths
}
