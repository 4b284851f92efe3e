package runtime

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fake answers as runtimes were seen to, in cases that are hard to bring about on a real one.
type fake struct {
	cri.UnimplementedRuntimeServiceServer
	containers []*cri.ContainerStatus
	sandboxes  []*cri.PodSandbox
	info       string
	// gone are containers that are listed and then removed.
	gone []string
	// stream serves events; nil: Unimplemented.
	stream func(grpc.ServerStreamingServer[cri.ContainerEventResponse]) error
}

func (f *fake) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake", RuntimeVersion: "v1.2.3"}, nil
}

func (f *fake) ListContainers(_ context.Context, q *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	r := &cri.ListContainersResponse{}
	for _, c := range f.containers {
		if matches(c.Labels, q.Filter.LabelSelector) {
			r.Containers = append(r.Containers, &cri.Container{Id: c.Id, Metadata: c.Metadata, CreatedAt: c.CreatedAt, Labels: c.Labels})
		}
	}
	return r, nil
}

func (f *fake) ContainerStatus(_ context.Context, q *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	for _, c := range f.containers {
		if c.Id == q.ContainerId && !slices.Contains(f.gone, c.Id) {
			return &cri.ContainerStatusResponse{Status: c, Info: map[string]string{"info": f.info}}, nil
		}
	}
	return nil, status.Error(codes.NotFound, "no such container")
}

func (f *fake) ListPodSandbox(_ context.Context, q *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	r := &cri.ListPodSandboxResponse{}
	for _, s := range f.sandboxes {
		if matches(s.Labels, q.Filter.LabelSelector) {
			r.Items = append(r.Items, s)
		}
	}
	return r, nil
}

func (f *fake) PodSandboxStatus(context.Context, *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	return &cri.PodSandboxStatusResponse{Info: map[string]string{"info": f.info}}, nil
}

func (f *fake) GetContainerEvents(q *cri.GetEventsRequest, s grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	if f.stream == nil {
		return f.UnimplementedRuntimeServiceServer.GetContainerEvents(q, s)
	}
	return f.stream(s)
}

func matches(labels, selector map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// serve serves the fake until the test ends, or until stop is called.
func (f *fake) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, f)
	go func() { _ = server.Serve(listener) }()
	stop = sync.OnceFunc(server.Stop)
	t.Cleanup(stop)
	return stop
}

func connect(t *testing.T, f *fake) *Runtime {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "cri.sock")
	f.serve(t, socket)
	return client(t, socket)
}

func client(t *testing.T, socket string) *Runtime {
	t.Helper()
	r, err := New(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r
}

func labels(pod, name string) map[string]string {
	return map[string]string{labelPodUID: pod, labelContainer: name}
}

func TestContainer(t *testing.T) {
	older := &cri.ContainerStatus{
		Id: "older", Labels: labels("pod", "guest"), CreatedAt: 10, State: cri.ContainerState_CONTAINER_EXITED,
	}
	newer := &cri.ContainerStatus{
		Id: "newer", Labels: labels("pod", "guest"), CreatedAt: 20, State: cri.ContainerState_CONTAINER_RUNNING,
	}
	all := []*cri.ContainerStatus{older, newer, {Id: "other", Labels: labels("pod", "sidecar"), CreatedAt: 30}, {Id: "stranger", Labels: labels("pod2", "guest"), CreatedAt: 40}}
	exited := Container{ID: "older", State: Exited}
	for name, c := range map[string]struct {
		fake  fake
		want  Container
		found bool
		fails bool
	}{
		"the newest counts": {
			fake:  fake{containers: all, info: `{"sandboxID":"x","pid":4711,"config":{}}`},
			want:  Container{ID: "newer", State: Running, PID: 4711},
			found: true,
		},
		"a later attempt is the newer, though the clock was set back": {
			fake: fake{containers: []*cri.ContainerStatus{
				{Id: "first", Metadata: &cri.ContainerMetadata{Attempt: 0}, Labels: labels("pod", "guest"), CreatedAt: 900},
				{Id: "third", Metadata: &cri.ContainerMetadata{Attempt: 2}, Labels: labels("pod", "guest"), CreatedAt: 100},
				{Id: "second", Metadata: &cri.ContainerMetadata{Attempt: 1}, Labels: labels("pod", "guest"), CreatedAt: 950},
			}},
			want:  Container{ID: "third", State: Created},
			found: true,
		},
		"one that was removed meanwhile does not": {fake: fake{containers: all, gone: []string{"newer"}}, want: exited, found: true},
		"an exited one has no process":            {fake: fake{containers: all[:1], info: `{"pid":4711}`}, want: exited, found: true},
		"a runtime that tells no process":         {fake: fake{containers: all}, fails: true},
		"a runtime that tells nonsense":           {fake: fake{containers: all, info: `{"pid":"x"}`}, fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, found, err := connect(t, &c.fake).Container(t.Context(), "pod", "guest")
			if (err != nil) != c.fails || found != c.found {
				t.Fatalf("Container() = found %t, %v", found, err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPod(t *testing.T) {
	r := connect(t, &fake{
		info: `{"runtimeType":"io.containerd.runc.v2"}`,
		sandboxes: []*cri.PodSandbox{
			{Id: "old", CreatedAt: 2, Labels: labels("pod", ""), RuntimeHandler: "kata"},
			{Id: "new", CreatedAt: 1, Labels: labels("pod", ""), RuntimeHandler: "runc", Metadata: &cri.PodSandboxMetadata{Attempt: 1}}, // the clock was set back
		},
	})
	got, found, err := r.Pod(t.Context(), "pod")
	if !found || err != nil {
		t.Fatalf("Pod() = found %t, %v", found, err)
	}
	if diff := cmp.Diff(Pod{Handler: "runc", Type: "io.containerd.runc.v2"}, got); diff != "" {
		t.Error(diff)
	}
	if err := r.ping(t.Context()); err != nil {
		t.Error(err)
	}
}

func event(uid string) *cri.ContainerEventResponse {
	return &cri.ContainerEventResponse{PodSandboxStatus: &cri.PodSandboxStatus{Metadata: &cri.PodSandboxMetadata{Uid: uid}}}
}

func TestEvents(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "cri.sock")
	f := &fake{stream: func(s grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
		_ = s.Send(event("pod"))
		_ = s.Send(&cri.ContainerEventResponse{ContainerId: "of no sandbox"})
		<-s.Context().Done()
		return nil
	}}
	stop := f.serve(t, socket)
	heard := make(chan string, 16)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- client(t, socket).Events(ctx, func(uid string) { heard <- uid }, func() { heard <- "resync" })
	}()
	expect := func(want ...string) {
		t.Helper()
		for _, w := range want {
			select {
			case got := <-heard:
				if got != w {
					t.Fatalf("heard %q, want %q", got, w)
				}
			case <-time.After(20 * time.Second):
				t.Fatalf("did not hear %q", w)
			}
		}
	}
	expect("resync", "pod", "resync")
	stop()
	f.serve(t, socket)
	expect("resync", "pod", "resync")
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("Events() = %v after its context ended", err)
	}
}

func TestRuntimeServesNoEvents(t *testing.T) {
	for name, f := range map[string]*fake{
		"it does not know the call":    {},
		"it ends every stream at once": {stream: func(grpc.ServerStreamingServer[cri.ContainerEventResponse]) error { return nil }},
	} {
		t.Run(name, func(t *testing.T) {
			err := connect(t, f).Events(t.Context(), func(string) {}, func() {})
			if !errors.Is(err, ErrNoEvents) || errors.Is(err, io.EOF) {
				t.Errorf("Events() = %v, want ErrNoEvents", err)
			}
		})
	}
}
