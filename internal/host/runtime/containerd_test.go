package runtime_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/test/env"
)

const (
	image       = "localhost/berth/pause:test"
	waitTimeout = 30 * time.Second
)

const config = `version = 3
root = "%[1]s/root"
state = "%[1]s/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "%[1]s/cri.sock"
[ttrpc]
  address = "%[1]s/cri.sock.ttrpc"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "` + image + `"
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.` + hosttest.OtherHandler + `]
  runtime_type = "io.containerd.runc.v2"
`

// containerd starts one of its own, without anything of the machine's, and returns its socket.
func containerd(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc"} {
		if _, err := exec.LookPath(program); err != nil || os.Getuid() != 0 {
			env.Missing(t, fmt.Sprintf("needs root, and containerd 2 and runc in PATH: %v", err))
		}
	}
	dir := t.TempDir()
	file, archive := filepath.Join(dir, "config.toml"), filepath.Join(dir, "pause.tar")
	if err := errors.Join(os.WriteFile(file, fmt.Appendf(nil, config, dir), 0o600), writeImage(archive)); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	cmd := exec.Command("sh", "-c", `mount -t tmpfs tmpfs /run && exec containerd -c "$0"`, file)
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	socket := filepath.Join(dir, "cri.sock")
	until(t, "containerd takes the image", func() bool {
		return exec.Command("ctr", "-a", socket, "-n", "k8s.io", "images", "import", archive).Run() == nil
	})
	return socket
}

// until tries again until it works. What is tried takes its own time.
func until(t *testing.T, what string, works func() bool) {
	t.Helper()
	for deadline := time.Now().Add(waitTimeout); !works(); {
		if time.Now().After(deadline) {
			t.Fatalf("did not happen: %s", what)
		}
	}
}

// writeImage makes an image, as an archive that ctr reads, whose only file is testdata/pause.
func writeImage(file string) error {
	program := file + ".program"
	build := exec.Command("go", "build", "-o", program, "./testdata/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("building pause: %w: %s", err, out)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	layer, err := pack(map[string][]byte{"pause": binary})
	if err != nil {
		return err
	}
	setup := fmt.Sprintf(`{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/pause"]},"rootfs":{"type":"layers","diff_ids":["sha256:%x"]}}`, sha256.Sum256(layer))
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{image}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return err
	}
	all, err := pack(map[string][]byte{"manifest.json": manifest, "config.json": []byte(setup), "layer.tar": layer})
	if err != nil {
		return err
	}
	return os.WriteFile(file, all, 0o600)
}

func pack(files map[string][]byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, data := range files {
		err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data))})
		if err == nil {
			_, err = w.Write(data)
		}
		if err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

func client(t *testing.T, socket string) *runtime.Runtime {
	t.Helper()
	r, err := runtime.New(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

// kubelet does to pods as kubelet does.
type kubelet struct {
	cri.RuntimeServiceClient
	sandboxes  map[string]*sandbox // by the pod's UID
	containers map[string]*sandbox // by the container's ID
}

type sandbox struct {
	id      string
	config  *cri.PodSandboxConfig
	created uint32
}

func newKubelet(t *testing.T, socket string) *kubelet {
	t.Helper()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &kubelet{cri.NewRuntimeServiceClient(conn), map[string]*sandbox{}, map[string]*sandbox{}}
}

// RunPod makes a pod that lasts until the test ends.
func (k *kubelet) RunPod(t *testing.T, podUID, handler string) {
	t.Helper()
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: podUID},
		Labels:   map[string]string{"io.kubernetes.pod.uid": podUID}, LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    "/berth-test-runtime-" + podUID,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}},
		},
	}
	t.Cleanup(func() { removeCgroups(t, config.Linux.CgroupParent) })
	run, err := k.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	k.sandboxes[podUID] = &sandbox{id: run.PodSandboxId, config: config}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), waitTimeout)
		defer cancel()
		_, stopErr := k.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: run.PodSandboxId})
		_, err := k.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: run.PodSandboxId})
		if err := errors.Join(stopErr, err); err != nil {
			t.Error(err)
		}
	})
}

// Create makes a container.
func (k *kubelet) Create(t *testing.T, podUID, name string) (id string) {
	t.Helper()
	in := k.sandboxes[podUID]
	created, err := k.CreateContainer(t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: in.id, SandboxConfig: in.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: name, Attempt: in.created}, Image: &cri.ImageSpec{Image: image},
			Labels:  map[string]string{"io.kubernetes.pod.uid": podUID, "io.kubernetes.container.name": name},
			LogPath: fmt.Sprint(in.created),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	in.created++
	k.containers[created.ContainerId] = in
	return created.ContainerId
}

// Start starts the container that was created last in its pod.
func (k *kubelet) Start(t *testing.T, id string) {
	t.Helper()
	if _, err := k.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	in := k.containers[id]
	until(t, "the container is ready to be asked to end", func() bool {
		log, err := os.ReadFile(filepath.Join(in.config.LogDirectory, fmt.Sprint(in.created-1)))
		return err == nil && strings.Contains(string(log), "ready")
	})
}

// Stop ends a container.
func (k *kubelet) Stop(t *testing.T, id string) {
	t.Helper()
	if _, err := k.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
}

// TestContract tests what holds of the in-memory runtime as well.
func TestContract(t *testing.T) {
	socket := containerd(t)
	hosttest.TestRuntime(t, hosttest.RuntimeSetup{
		Containers: client(t, socket), Kubelet: newKubelet(t, socket),
		Away: client(t, filepath.Join(t.TempDir(), "none.sock")),
	})
}

// TestContainerd looks at what only a real runtime has: events, processes, cgroups.
func TestContainerd(t *testing.T) {
	socket := containerd(t)
	r, k := client(t, socket), newKubelet(t, socket)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	version, err := k.Version(ctx, &cri.VersionRequest{})
	if err != nil || version.RuntimeName != "containerd" || !strings.HasPrefix(strings.TrimPrefix(version.RuntimeVersion, "v"), "2.") {
		t.Fatalf("Version() = %+v, %v", version, err)
	}
	events := make(chan string, 64)
	ended := make(chan error, 1)
	go func() {
		ended <- r.Events(ctx, func(uid string) { events <- uid }, func() { events <- "resync" })
	}()
	expectEvent(t, events, "resync")
	pod := uuid.NewString()
	k.RunPod(t, pod, "")
	id := k.Create(t, pod, "guest")
	k.Start(t, id)
	expectEvent(t, events, pod)
	c, _, err := r.Container(ctx, pod, "guest")
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.PID))
	if err != nil || !strings.HasPrefix(string(exe), "/pause") {
		t.Errorf("process %d is %q, %v", c.PID, exe, err)
	}
	cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID))
	if err != nil || !strings.Contains(string(cgroup), k.sandboxes[pod].config.Linux.CgroupParent+"/"+id) {
		t.Errorf("process %d is in %s, %v", c.PID, cgroup, err)
	}
	if p, _, err := r.Pod(ctx, pod); err != nil || p.Type != "io.containerd.runc.v2" {
		t.Errorf("Pod() = %+v, %v", p, err)
	}
	k.Stop(t, id)
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Events() = %v", err)
	}
}

func expectEvent(t *testing.T, events <-chan string, want string) {
	t.Helper()
	select {
	case got := <-events:
		if got != want {
			t.Errorf("event %q, want %q", got, want)
		}
	case <-time.After(waitTimeout):
		t.Fatalf("no event %q", want)
	}
}

// removeCgroups removes the pod's cgroups, as kubelet does.
func removeCgroups(t *testing.T, parent string) {
	t.Helper()
	roots, err := filepath.Glob("/sys/fs/cgroup/*" + parent)
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range append(roots, "/sys/fs/cgroup"+parent) {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	}
}
