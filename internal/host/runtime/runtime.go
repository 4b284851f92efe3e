package runtime

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Labels that kubelet gives to every container and sandbox.
const (
	labelPodUID    = "io.kubernetes.pod.uid"
	labelContainer = "io.kubernetes.container.name"
)

const (
	// callTimeout bounds each call. A runtime that starts many pods at once answers slowly.
	callTimeout = 5 * time.Second
	// maxReply is in bytes. The list of a crowded node's containers is far smaller.
	maxReply = 16 << 20
	// maxReconnectBackoff bounds the wait between attempts to reach a runtime that does not answer.
	maxReconnectBackoff = 3 * time.Second
)

// Runtime is a client of one container runtime. It may be used from many goroutines.
type Runtime struct {
	conn *grpc.ClientConn
	api  cri.RuntimeServiceClient
}

// New returns a client of the runtime at the UNIX socket, which need not be there yet.
func New(socket string) (*Runtime, error) {
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithIdleTimeout(0),
		grpc.WithSharedWriteBuffer(true),
		grpc.WithReadBufferSize(4<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxReply)),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 2, Jitter: 0.2, MaxDelay: maxReconnectBackoff},
			MinConnectTimeout: callTimeout,
		}),
	)
	return &Runtime{conn: conn, api: cri.NewRuntimeServiceClient(conn)}, fault.Doing(err, "creating a client of the container runtime at %s", socket)
}

// Close ends the connection.
func (r *Runtime) Close() error { return r.conn.Close() }

// ping finds out whether the runtime answers.
func (r *Runtime) ping(ctx context.Context) error {
	_, err := call(ctx, "asking container runtime for its version", r.api.Version, &cri.VersionRequest{})
	return err
}

// State is the state of a container.
type State uint8

// The states of a container. Unknown is the runtime's own word.
const (
	Unknown State = iota
	Created
	Running
	Exited
)

var states = map[cri.ContainerState]State{
	cri.ContainerState_CONTAINER_CREATED: Created,
	cri.ContainerState_CONTAINER_RUNNING: Running,
	cri.ContainerState_CONTAINER_EXITED:  Exited,
}

// Container is one container, as the runtime has it.
type Container struct {
	ID    string
	State State
	// PID is its first process, in the host's PID namespace; 0 unless it runs.
	PID int
}

// Container returns the newest container of that name in the pod; found is
// false when the runtime has none, and says nothing beside an error.
func (r *Runtime) Container(ctx context.Context, podUID, name string) (c Container, found bool, err error) {
	labels := map[string]string{labelPodUID: podUID, labelContainer: name}
	list, err := call(ctx, "listing containers", r.api.ListContainers,
		&cri.ListContainersRequest{Filter: &cri.ContainerFilter{LabelSelector: labels}})
	if err != nil {
		return Container{}, false, err
	}
	slices.SortFunc(list.Containers, func(a, b *cri.Container) int {
		return newestFirst(a.GetMetadata().GetAttempt(), b.GetMetadata().GetAttempt(), a.CreatedAt, b.CreatedAt)
	})
	for _, item := range list.Containers {
		reply, err := call(ctx, "asking container runtime for container", r.api.ContainerStatus,
			&cri.ContainerStatusRequest{ContainerId: item.Id, Verbose: true})
		if status.Code(err) == codes.NotFound {
			continue // removed meanwhile
		}
		if err != nil {
			return Container{}, false, err
		}
		c, err := read(reply)
		return c, err == nil, err
	}
	return Container{}, false, nil
}

func read(reply *cri.ContainerStatusResponse) (Container, error) {
	s := reply.GetStatus()
	c := Container{ID: s.GetId(), State: states[s.GetState()]}
	if c.State != Running {
		return c, nil
	}
	var info struct {
		PID int `json:"pid"` // containerd's and CRI-O's own
	}
	err := json.Unmarshal([]byte(reply.GetInfo()["info"]), &info)
	if err == nil && info.PID <= 0 {
		err = errors.New("its info has no pid")
	}
	if err != nil {
		return Container{}, unreachable(fmt.Errorf("reading the process ID of container %s: %w", c.ID, err))
	}
	c.PID = info.PID
	return c, nil
}

// Pod is what the runtime has of one pod.
type Pod struct {
	// Handler is the runtime handler that its RuntimeClass asked for, "" for the default.
	Handler string
	// Type is what really runs it, as "io.containerd.runc.v2"; "" when the runtime does not tell.
	Type string
}

// UnsupportedError says that a pod has a runtime that Berth does not support, and which; see Pod.Unsupported.
type UnsupportedError string

// Error is for people.
func (e UnsupportedError) Error() string {
	return "the pod's runtime is " + string(e) + ": Berth needs runc or crun"
}

// Unsupported is the name of what runs the pod if that is neither runc nor crun, "" if it is one of them or unknown. Both
// are of containerd's type runc; CRI-O tells of handlers alone, and its default is one of them.
func (p Pod) Unsupported() string {
	switch {
	case strings.HasPrefix(p.Type, "io.containerd.runc."):
		return ""
	case p.Type != "":
		return p.Type
	case p.Handler == "" || p.Handler == "runc" || p.Handler == "crun":
		return ""
	}
	return p.Handler
}

// Pod returns what the runtime has of the pod, whose newest sandbox counts; found is false when it has none.
func (r *Runtime) Pod(ctx context.Context, podUID string) (p Pod, found bool, err error) {
	labels := map[string]string{labelPodUID: podUID}
	sandboxes, err := call(ctx, "listing pod sandboxes", r.api.ListPodSandbox,
		&cri.ListPodSandboxRequest{Filter: &cri.PodSandboxFilter{LabelSelector: labels}})
	if err != nil || len(sandboxes.Items) == 0 {
		return Pod{}, false, err
	}
	newest := slices.MinFunc(sandboxes.Items, func(a, b *cri.PodSandbox) int {
		return newestFirst(a.GetMetadata().GetAttempt(), b.GetMetadata().GetAttempt(), a.CreatedAt, b.CreatedAt)
	})
	p.Handler = newest.RuntimeHandler
	reply, err := call(ctx, "asking container runtime for pod sandbox", r.api.PodSandboxStatus,
		&cri.PodSandboxStatusRequest{PodSandboxId: newest.Id, Verbose: true})
	switch {
	case status.Code(err) == codes.NotFound:
		return Pod{}, false, nil
	case err != nil:
		return Pod{}, false, err
	}
	var info struct {
		RuntimeType string `json:"runtimeType"` // containerd's own
	}
	if json.Unmarshal([]byte(reply.GetInfo()["info"]), &info) == nil {
		p.Type = info.RuntimeType
	}
	return p, true, nil
}

// newestFirst orders what a pod has had by kubelet's count of attempts, and by time only among equals: the node's clock may
// be set back.
func newestFirst(attempt, otherAttempt uint32, created, otherCreated int64) int {
	return cmp.Or(cmp.Compare(otherAttempt, attempt), cmp.Compare(otherCreated, created))
}

// call does one call with its deadline and classifies its failure.
func call[Q, A any](ctx context.Context, doing string, method func(context.Context, Q, ...grpc.CallOption) (A, error), q Q) (A, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := method(ctx, q)
	return answer, unreachable(fault.Doing(err, "%s", doing))
}

func unreachable(err error) error { return fault.NewTransient(v1alpha1.ReasonRuntimeUnreachable, err) }
