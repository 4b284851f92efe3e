package runtime

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

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	image  = "localhost/berth/pause:test"
	podUID = "0c0ff33e-1111-2222-3333-444444444444"

	patience = 30 * time.Second
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
`

// containerd starts one of its own, without anything of the machine's, and returns its socket.
func containerd(t *testing.T) string {
	t.Helper()
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc"} {
		if _, err := exec.LookPath(program); err != nil || os.Getuid() != 0 {
			if os.Getenv("BERTH_TEST_REQUIRE") != "" {
				t.Fatalf("needs root, and containerd 2 and runc in PATH: %v", err)
			}
			t.Skipf("needs root, and containerd 2 and runc in PATH: %v", err)
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
	for deadline := time.Now().Add(patience); !works(); {
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

// TestContainerd does as kubelet does, and looks as the agent does.
func TestContainerd(t *testing.T) {
	r := client(t, containerd(t))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	version, err := r.Version(ctx)
	if err != nil || !strings.HasPrefix(version, "containerd 2.") {
		t.Fatalf("Version() = %q, %v", version, err)
	}
	events := make(chan string, 64)
	ended := make(chan error, 1)
	go func() {
		ended <- r.Events(ctx, func(uid string) { events <- uid }, func() { events <- "resync" })
	}()
	expectEvent(t, events, "resync")

	if _, found, err := r.Container(ctx, podUID, "guest"); found || err != nil {
		t.Fatalf("Container() of no pod = found %t, %v", found, err)
	}
	sandbox := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: podUID},
		Labels:   map[string]string{labelPodUID: podUID}, LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent:    fmt.Sprintf("/berth-test-runtime-%d", os.Getpid()),
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}},
		},
	}
	t.Cleanup(func() { removeCgroups(t, sandbox.Linux.CgroupParent) })
	run, err := r.api.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_, stopErr := r.api.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: run.PodSandboxId})
		_, err := r.api.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: run.PodSandboxId})
		if err := errors.Join(stopErr, err); err != nil {
			t.Error(err)
		}
	})
	for attempt := range uint32(2) { // kubelet starts the next one in the same sandbox
		id := start(t, r, run.PodSandboxId, sandbox, attempt)
		expectEvent(t, events, podUID)
		c, found, err := r.Container(ctx, podUID, "guest")
		if err != nil || !found || c.ID != id || c.State != Running {
			t.Fatalf("Container() = %+v, found %t, %v; want %s running", c, found, err, id)
		}
		exe, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", c.PID))
		if err != nil || !strings.HasPrefix(string(exe), "/pause") {
			t.Errorf("process %d is %q, %v", c.PID, exe, err)
		}
		cgroup, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", c.PID))
		if err != nil || !strings.Contains(string(cgroup), sandbox.Linux.CgroupParent+"/"+id) {
			t.Errorf("process %d is in %s, %v", c.PID, cgroup, err)
		}
		if _, err := r.api.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
			t.Fatal(err)
		}
		c, found, err = r.Container(ctx, podUID, "guest")
		if err != nil || !found || c.ID != id || c.State != Exited || c.PID != 0 {
			t.Errorf("Container() = %+v, found %t, %v; want %s exited", c, found, err, id)
		}
	}
	pod, found, err := r.Pod(ctx, podUID)
	if err != nil || !found || pod.Handler != "" || pod.Type != "io.containerd.runc.v2" {
		t.Errorf("Pod() = %+v, found %t, %v", pod, found, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Events() = %v", err)
	}
}

func start(t *testing.T, r *Runtime, sandboxID string, sandbox *cri.PodSandboxConfig, attempt uint32) string {
	t.Helper()
	created, err := r.api.CreateContainer(t.Context(), &cri.CreateContainerRequest{
		PodSandboxId: sandboxID, SandboxConfig: sandbox,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "guest", Attempt: attempt}, Image: &cri.ImageSpec{Image: image},
			Labels: labels(podUID, "guest"), LogPath: fmt.Sprint(attempt),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.api.StartContainer(t.Context(), &cri.StartContainerRequest{ContainerId: created.ContainerId}); err != nil {
		t.Fatal(err)
	}
	until(t, "the container is ready to be asked to end", func() bool {
		log, err := os.ReadFile(filepath.Join(sandbox.LogDirectory, fmt.Sprint(attempt)))
		return err == nil && strings.Contains(string(log), "ready")
	})
	return created.ContainerId
}

func expectEvent(t *testing.T, events <-chan string, want string) {
	t.Helper()
	select {
	case got := <-events:
		if got != want {
			t.Errorf("event %q, want %q", got, want)
		}
	case <-time.After(patience):
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
