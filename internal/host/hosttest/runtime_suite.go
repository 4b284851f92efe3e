package hosttest

import (
	"context"
	"testing"

	"github.com/google/uuid"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/runtime"
)

// Containers is what TestRuntime asks a runtime.Runtime.
type Containers interface {
	Container(ctx context.Context, podUID, name string) (c runtime.Container, found bool, err error)
	Pod(ctx context.Context, podUID string) (p runtime.Pod, found bool, err error)
}

// Kubelet is what TestRuntime has done to pods, as kubelet does it.
type Kubelet interface {
	// RunPod makes a pod without containers. An empty handler is the runtime's default; every handler is runc.
	RunPod(t *testing.T, podUID, handler string)
	// Create makes a container and returns its ID.
	Create(t *testing.T, podUID, name string) (id string)
	// Start starts the container that was created last in the pod.
	Start(t *testing.T, id string)
	// Stop ends a container and its process.
	Stop(t *testing.T, id string)
}

// RuntimeSetup is a container runtime to be tested.
type RuntimeSetup struct {
	Containers
	Kubelet
	// Away is one that answers nobody.
	Away Containers
}

// OtherHandler is a runtime handler that the runtime has besides its default.
const OtherHandler = "other"

// TestRuntime tests what holds of every container runtime as the agent sees it.
func TestRuntime(t *testing.T, s RuntimeSetup) {
	expect := func(t *testing.T, pod, id string, state runtime.State) runtime.Container {
		t.Helper()
		c, found, err := s.Container(t.Context(), pod, "guest")
		if err != nil || found != (id != "") || c.ID != id || c.State != state || (c.PID > 0) != (state == runtime.Running) {
			t.Errorf("it is %+v, found %t, %v; want %q in state %d", c, found, err, id, state)
		}
		return c
	}
	t.Run("a pod that is unknown has nothing", func(t *testing.T) {
		pod := uuid.NewString()
		expect(t, pod, "", runtime.Unknown)
		if p, found, err := s.Pod(t.Context(), pod); found || err != nil {
			t.Errorf("it is %+v, found %t, %v", p, found, err)
		}
	})
	t.Run("a container's life, and the next one's", func(t *testing.T) {
		pod := uuid.NewString()
		s.RunPod(t, pod, "")
		expect(t, pod, "", runtime.Unknown)
		var pids []int
		for range 2 { // kubelet starts the next one in the same pod
			id := s.Create(t, pod, "guest")
			expect(t, pod, id, runtime.Created)
			s.Start(t, id)
			pids = append(pids, expect(t, pod, id, runtime.Running).PID)
			if c, found, err := s.Container(t.Context(), pod, "sidecar"); found || err != nil {
				t.Errorf("a container of another name is %+v, %v", c, err)
			}
			s.Stop(t, id)
			expect(t, pod, id, runtime.Exited)
		}
		if pids[0] == pids[1] {
			t.Errorf("two containers have process %d", pids[0])
		}
	})
	t.Run("the containers of two pods are two", func(t *testing.T) {
		one, two := uuid.NewString(), uuid.NewString()
		s.RunPod(t, one, "")
		s.RunPod(t, two, "")
		first, second := s.Create(t, one, "guest"), s.Create(t, two, "guest")
		s.Start(t, second)
		expect(t, one, first, runtime.Created)
		expect(t, two, second, runtime.Running)
	})
	for _, handler := range []string{"", OtherHandler} {
		t.Run("a pod of handler "+handler+" is run by runc", func(t *testing.T) {
			pod := uuid.NewString()
			s.RunPod(t, pod, handler)
			p, found, err := s.Pod(t.Context(), pod)
			if !found || err != nil || p.Handler != handler || p.Unsupported() != "" {
				t.Errorf("it is %+v, found %t, %v", p, found, err)
			}
		})
	}
	t.Run("without the runtime nothing is known", func(t *testing.T) {
		_, found, err := s.Away.Container(t.Context(), uuid.NewString(), "guest")
		_, foundPod, podErr := s.Away.Pod(t.Context(), uuid.NewString())
		if found || foundPod {
			t.Error("something was found")
		}
		for _, err := range []error{err, podErr} {
			expectFault(t, "looking up", err, fault.Transient, v1alpha1.ReasonRuntimeUnreachable)
		}
	})
}
