package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/sandbox"
	"github.com/berth-dev/berth/internal/host/volume"
	"github.com/berth-dev/berth/internal/worker"
)

const (
	vm  = types.UID("6ba7b810-9dad-41d1-80b4-00c04fd430c8")
	gib = int64(1) << 30
)

// host has one volume attached, until it is detached.
type host struct {
	Host
	disk     volume.Attached
	detached bool
}

func (h *host) Attached(string) ([]volume.Attached, error) { return []volume.Attached{h.disk}, nil }

func (h *host) RecordMade(_, _ string, m volume.Made) error {
	h.disk.Made, h.disk.Size, h.disk.Target, h.disk.Capacity, h.disk.Seed = true, m.Size, m.Target, m.Capacity, m.Seed
	return nil
}

func (h *host) OpenForWorker(context.Context, string, string) (*os.File, string, error) {
	f, err := os.Open(os.DevNull)
	return f, "disk.img", err
}

func (h *host) Detach(context.Context, string) error {
	h.detached = true
	return nil
}

// room is one whose workers say what say sends, until it ends.
type room struct {
	*Volumes
	host  *host
	say   chan worker.Answer
	woken chan types.UID
	asked chan worker.Request
}

func newRoom(t *testing.T) *room {
	t.Helper()
	r := &room{host: &host{disk: volume.Attached{Volume: volume.Volume{Disk: "data", Claim: "claim-1"}}}, say: make(chan worker.Answer), woken: make(chan types.UID, 1), asked: make(chan worker.Request, 1)}
	r.Volumes = New(t.Context(), Options{
		Host: r.host, Disks: r.host, Now: func() time.Time { return time.Unix(1e9, 0) }, Wake: func(vm types.UID) { r.woken <- vm },
		Run: func(ctx context.Context, j sandbox.Job, line func([]byte)) error {
			var asked worker.Request
			if err := json.Unmarshal(j.Input, &asked); err != nil {
				return err
			}
			r.asked <- asked
			for {
				select {
				case a, more := <-r.say:
					if !more {
						return nil
					}
					text, err := json.Marshal(a)
					if err != nil {
						return err
					}
					line(text)
				case <-ctx.Done():
					return context.Cause(ctx)
				}
			}
		},
	})
	return r
}

// start starts a worker, and waits until it has been asked.
func (r *room) start(q worker.Request) worker.Request {
	r.Start(vm, "data", q, sandbox.Job{})
	return <-r.asked
}

// answers has the worker say all of it and end.
func (r *room) answers(all ...worker.Answer) {
	for _, a := range all {
		r.say <- a
	}
	close(r.say)
	<-r.woken
}

func (r *room) expect(t *testing.T, want plan.Volume) {
	t.Helper()
	got, err := r.State(vm)
	want.Disk, want.Claim = "data", "claim-1"
	if diff := cmp.Diff([]plan.Volume{want}, got, cmpopts.EquateErrors()); diff != "" || err != nil {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
}

func TestAWorkerMakesADisk(t *testing.T) {
	r := newRoom(t)
	asked := r.start(worker.Request{Capacity: gib, Seed: &worker.Seed{Digest: "sha256:1", Size: gib / 2}})
	if asked.Name != "disk.img" || asked.Capacity != gib || asked.Seed == nil {
		t.Errorf("the worker is asked for %+v", asked)
	}
	r.expect(t, plan.Volume{Working: true, Total: gib / 2})
	r.Start(vm, "data", worker.Request{}, sandbox.Job{}) // one is at work
	r.say <- worker.Answer{Progress: &worker.Progress{Done: gib / 4, Total: gib / 2}}
	r.say <- worker.Answer{Progress: &worker.Progress{Done: gib / 4, Total: gib / 2}} // so the first was heard
	r.expect(t, plan.Volume{Working: true, Done: gib / 4, Total: gib / 2})
	r.answers(worker.Answer{Result: &worker.Result{Size: gib, Target: gib, Seeded: true}})
	r.expect(t, plan.Volume{Made: true, Size: gib, Target: gib, Capacity: gib, Seed: "sha256:1"})

	r.say = make(chan worker.Answer) // of a worker that looks how much there is by now
	r.start(worker.Request{Capacity: 2 * gib, Known: true})
	r.answers(worker.Answer{Result: &worker.Result{Size: 2 * gib, Target: 2 * gib}})
	grown := plan.Volume{Made: true, Size: gib, Target: 2 * gib, Capacity: 2 * gib, Seed: "sha256:1"} // QEMU has it as it was
	r.expect(t, grown)
	if err := r.Grown(string(vm), r.host.disk, 2*gib); err != nil {
		t.Fatal(err)
	}
	grown.Size = 2 * gib
	r.expect(t, grown)
}

func TestAWorkerThatFailsIsFollowedByAnother(t *testing.T) {
	for name, answers := range map[string][]worker.Answer{
		"it says why":    {{Error: &worker.Error{Reason: v1alpha1.ReasonVolumeUnsafe, Message: "disk.img is a link"}}},
		"without a word": nil,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRoom(t)
			r.start(worker.Request{})
			r.answers(answers...)
			state, err := r.State(vm)
			if err != nil || state[0].Working || state[0].Err == nil || !state[0].Retry.Equal(time.Unix(1e9, 0).Add(retry)) {
				t.Fatalf("it is %+v, %v", state, err)
			}
			if answers != nil && (fault.ReasonOf(state[0].Err) != v1alpha1.ReasonVolumeUnsafe || state[0].Err.Error() != "disk.img is a link") {
				t.Errorf("it failed for %v", state[0].Err)
			}
			failed := state[0].Err
			r.say = make(chan worker.Answer)
			r.start(worker.Request{})
			if state, err = r.State(vm); err != nil || !state[0].Working || !errors.Is(state[0].Err, failed) {
				t.Errorf("while the next works it is %+v, %v", state, err)
			}
			r.answers(worker.Answer{Result: &worker.Result{Size: gib, Target: gib}})
			r.expect(t, plan.Volume{Made: true, Size: gib, Target: gib})
		})
	}
}

func TestDetachEndsWorkers(t *testing.T) {
	r := newRoom(t)
	r.start(worker.Request{})
	if err := r.Detach(t.Context(), string(vm)); err != nil || !r.host.detached {
		t.Errorf("detached: %t, %v", r.host.detached, err)
	}
	r.expect(t, plan.Volume{}) // of whatever is attached next nothing is known
}
