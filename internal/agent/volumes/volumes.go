package volumes

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/sandbox"
	"github.com/berth-dev/berth/internal/host/volume"
	"github.com/berth-dev/berth/internal/worker"
)

// retry is after what time a worker that failed is followed by another: nobody tells that a volume was mended.
const retry = 15 * time.Second

// patience is how long a worker may take that writes no image: its volume's server may never answer.
const patience = time.Minute

// Host attaches volumes, as a volume.Volumes does.
type Host interface {
	Attach(ctx context.Context, g volume.Guest, shim int, v volume.Volume) error
	Attached(uid string) ([]volume.Attached, error)
	Detach(ctx context.Context, uid string) error
	List() ([]string, error)
	Grant(ctx context.Context, group int) error
}

// Disks are those on attached volumes, as a volume.Volumes has them.
type Disks interface {
	RecordMade(uid, disk string, m volume.Made) error
	OpenForWorker(ctx context.Context, uid, disk string) (dir *os.File, name string, err error)
}

// Options are what Volumes need of others.
type Options struct {
	Host
	Disks
	Run  func(ctx context.Context, j sandbox.Job, line func([]byte)) error // runs a worker to its end
	Wake func(vm types.UID)                                                // a worker of the VM has ended
	Now  func() time.Time
}

// Volumes are those of a node. They are safe for concurrent use.
type Volumes struct {
	Options
	life context.Context // ends with the agent

	mu   sync.Mutex
	jobs map[key]*job
}

type key struct {
	vm   types.UID
	disk string
}

// job is a worker, or how the last one failed, which stands until the next has done better.
type job struct {
	cancel  context.CancelFunc
	ended   chan struct{}
	working bool
	told    worker.Progress
	err     error
	retry   time.Time
}

// New makes Volumes, whose workers end with ctx.
func New(ctx context.Context, o Options) *Volumes {
	return &Volumes{Options: o, life: ctx, jobs: map[key]*job{}}
}

// State is what is attached for a guest, and how far its workers are.
func (v *Volumes) State(vm types.UID) ([]plan.Volume, error) {
	attached, err := v.Attached(string(vm))
	if err != nil {
		return nil, fmt.Errorf("reading the volumes of guest %s: %w", vm, err)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	var list []plan.Volume
	for _, a := range attached {
		state := plan.Volume{
			Disk: a.Disk, Claim: types.UID(a.Claim), Made: a.Made, Seed: a.Seed, Size: a.Size, Target: a.Target, Capacity: a.Capacity,
		}
		if j := v.jobs[key{vm, a.Disk}]; j != nil {
			state.Working, state.Done, state.Total = j.working, j.told.Done, j.told.Total
			state.Err, state.Retry = j.err, j.retry
		}
		list = append(list, state)
	}
	return list, nil
}

// Start has a worker answer a request for a disk, unless one does, and does not wait. as says who the worker is; its files,
// which are closed then, are the seed's image or none.
func (v *Volumes) Start(vm types.UID, disk string, r worker.Request, as sandbox.Job) {
	v.mu.Lock()
	defer v.mu.Unlock()
	k := key{vm, disk}
	had := v.jobs[k]
	if had != nil && had.working {
		closeAll(as.Files)
		return
	}
	ctx, cancel := context.WithCancel(v.life)
	if r.Seed == nil {
		ctx, cancel = context.WithTimeoutCause(v.life, patience, errors.New("the volume does not answer: see whether its server does"))
	}
	j := &job{cancel: cancel, ended: make(chan struct{}), working: true}
	if had != nil {
		j.err = had.err
	}
	if r.Seed != nil {
		j.told.Total = r.Seed.Size
	}
	v.jobs[k] = j
	go func() {
		defer close(j.ended)
		defer cancel()
		err := v.work(ctx, k, r, as, j)
		closeAll(as.Files)
		v.mu.Lock()
		if j.working, j.err, j.retry = false, err, v.Now().Add(retry); err == nil {
			delete(v.jobs, k)
		}
		v.mu.Unlock()
		v.Wake(vm)
	}()
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// work runs a worker, and records what it made.
func (v *Volumes) work(ctx context.Context, k key, r worker.Request, as sandbox.Job, j *job) error {
	dir, name, err := v.OpenForWorker(ctx, string(k.vm), k.disk)
	if err != nil {
		return fmt.Errorf("opening its volume: %w", err)
	}
	defer dir.Close()
	r.Name = name
	input, _ := json.Marshal(r) // strings and numbers never fail
	as.Args, as.Input, as.Files = []string{"worker"}, append(input, '\n'), append([]*os.File{dir}, as.Files...)
	var last worker.Answer
	var malformed error
	err = v.Run(ctx, as, func(line []byte) {
		last = worker.Answer{}
		malformed = cmp.Or(malformed, json.Unmarshal(line, &last))
		if last.Progress != nil {
			v.mu.Lock()
			j.told = *last.Progress
			v.mu.Unlock()
		}
	})
	switch {
	case malformed != nil:
		return fmt.Errorf("reading a worker's answer: %w", malformed)
	case last.Error != nil:
		return fault.NewUser(last.Error.Reason, errors.New(last.Error.Message))
	case err != nil:
		return fmt.Errorf("making the disk: %w", err)
	case last.Result == nil:
		return errors.New("making the disk: the worker ended without an answer")
	}
	return v.record(k, r, *last.Result)
}

// record keeps what a worker told. QEMU sees a disk that was made before as it was when it opened it.
func (v *Volumes) record(k key, asked worker.Request, r worker.Result) error {
	attached, err := v.Attached(string(k.vm))
	if err != nil {
		return fmt.Errorf("reading its volume: %w", err)
	}
	made := volume.Made{Size: r.Size, Target: r.Target, Capacity: asked.Capacity}
	if r.Seeded {
		made.Seed = asked.Seed.Digest
	}
	for _, a := range attached {
		if a.Disk == k.disk && a.Made {
			made.Size, made.Seed = a.Size, a.Seed
		}
	}
	return fault.Doing(v.RecordMade(string(k.vm), k.disk, made), "recording the disk")
}

// Grown records that QEMU has been told of all that a disk can have.
func (v *Volumes) Grown(uid string, a volume.Attached, size int64) error {
	return v.RecordMade(uid, a.Disk, volume.Made{Size: size, Target: a.Target, Capacity: a.Capacity, Seed: a.Seed})
}

// Detach ends a guest's workers, and takes its volumes away.
func (v *Volumes) Detach(ctx context.Context, uid string) error {
	v.mu.Lock()
	var ending []*job
	for k, j := range v.jobs {
		if k.vm == types.UID(uid) {
			j.cancel()
			ending = append(ending, j)
		}
	}
	v.mu.Unlock()
	for _, j := range ending {
		select {
		case <-j.ended:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the workers of guest %s to end: %w", uid, ctx.Err())
		}
	}
	if err := v.Host.Detach(ctx, uid); err != nil {
		return err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	maps.DeleteFunc(v.jobs, func(k key, _ *job) bool { return k.vm == types.UID(uid) })
	return nil
}
