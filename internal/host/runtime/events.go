package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ErrNoEvents says that this runtime does not serve GetContainerEvents.
var ErrNoEvents = errors.New("container runtime serves no events")

const (
	// healthCheckInterval is how often a silent stream's connection is checked.
	healthCheckInterval = 30 * time.Second
	// maxEmptyStreams in a row, from a runtime that answers, mean that it serves none: CRI-O ends them at once if
	// enable_pod_events is off.
	maxEmptyStreams = 3
)

// Events calls changed with the pod's UID whenever one of its containers or its sandbox was created, started, stopped or
// deleted, and resync after each connection, when events may have been missed. Neither may block. It returns nil when ctx
// ends, or an error that matches ErrNoEvents. Events are hints: containerd drops some under load.
func (r *Runtime) Events(ctx context.Context, changed func(podUID string), resync func()) error {
	backoff, empty := 50*time.Millisecond, 0
	for ctx.Err() == nil {
		connected, gotEvent, err := r.stream(ctx, changed, resync)
		switch {
		case status.Code(err) == codes.Unimplemented:
			return unreachable(fmt.Errorf("%w: %w", ErrNoEvents, err))
		case connected && !gotEvent && errors.Is(err, io.EOF):
			if empty++; empty == maxEmptyStreams {
				return unreachable(fmt.Errorf("%w: it ends the stream at once", ErrNoEvents))
			}
		case connected:
			backoff, empty = 50*time.Millisecond, 0
		}
		select {
		case <-ctx.Done():
		case <-time.After(backoff):
			backoff = min(2*backoff, maxReconnectBackoff)
		}
	}
	return nil
}

// stream follows one stream to its end. connected: the runtime answered meanwhile; gotEvent: there was an event.
func (r *Runtime) stream(ctx context.Context, changed func(string), resync func()) (connected, gotEvent bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := r.api.GetContainerEvents(ctx, &cri.GetEventsRequest{})
	if err != nil {
		return false, false, err
	}
	// The runtime reads calls of one connection in their order, so by its answer to this one it has begun the stream.
	if err := r.ping(ctx); err != nil {
		return false, false, err
	}
	resync()
	go r.healthCheck(ctx, cancel)
	for {
		event, err := stream.Recv()
		if err != nil {
			return true, gotEvent, err
		}
		gotEvent = true
		if uid := event.GetPodSandboxStatus().GetMetadata().GetUid(); uid != "" {
			changed(uid)
		} else {
			resync() // CRI-O omits the sandbox of what it has deleted
		}
	}
}

// healthCheck ends the stream of a runtime that hangs: on a silent stream nothing else would tell.
func (r *Runtime) healthCheck(ctx context.Context, cancel context.CancelFunc) {
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(healthCheckInterval):
			if r.ping(ctx) != nil {
				cancel()
			}
		}
	}
}
