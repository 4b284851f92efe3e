package pulls

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
)

const (
	web  = types.UID("web")
	db   = types.UID("db")
	full = "quay.io/a/debian:12"
	mib  = 1 << 20
)

var (
	root   = Image{Name: "root", Reference: "quay.io/a/debian:12"}
	pinned = Image{Name: "root", Reference: "quay.io/a/debian:12", Digest: "sha256:old"}
	kernel = Image{Name: plan.Kernel, Reference: "quay.io/a/debian:12", Kernel: "/boot/kernel", Initrd: "/boot/initrd"}
)

// pull starts a pull and waits for its end.
func (f *fixture) pull(t *testing.T, vm types.UID, i Image, keys Keys) {
	t.Helper()
	f.Start(vm, i, keys)
	if woken := <-f.woken; woken != vm {
		t.Fatalf("woke %s, want %s", woken, vm)
	}
}

func (f *fixture) state(t *testing.T, vm types.UID, i Image, keys Keys) plan.Image {
	t.Helper()
	got, err := f.State(vm, i, keys)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestWhatTheStoreHasIsReadyForWhoWasGivenAccess(t *testing.T) {
	ref, err := image.ParseReference(full)
	if err != nil {
		t.Fatal(err)
	}
	ready := func(digest string) plan.Image { return plan.Image{State: plan.ImageReady, Digest: digest} }
	for name, tt := range map[string]struct {
		image Image
		keys  Keys
		tag   string // what the reference meant here
		has   store.Content
		proof string
		want  plan.Image
	}{
		"nothing is known":                     {image: root, keys: none},
		"what its tag meant here":              {root, none, "sha256:new", store.Content{Digest: "sha256:new"}, image.Anonymous, ready("sha256:new")},
		"what its tag meant was removed":       {root, none, "sha256:new", store.Content{Digest: "sha256:old"}, image.Anonymous, plan.Image{}},
		"a tag that moved changes no VM":       {pinned, none, "sha256:new", store.Content{Digest: "sha256:old"}, image.Anonymous, ready("sha256:old")},
		"what the VM had was removed":          {pinned, none, "sha256:new", store.Content{Digest: "sha256:new"}, image.Anonymous, plan.Image{}},
		"a kernel":                             {kernel, none, "sha256:new", kernel.Content("sha256:new"), image.Anonymous, ready("sha256:new")},
		"an image's disk is not its kernel":    {kernel, none, "sha256:new", store.Content{Digest: "sha256:new"}, image.Anonymous, plan.Image{}},
		"a private one, by the credential":     {root, team, "sha256:new", store.Content{Digest: "sha256:new"}, proof(ref), ready("sha256:new")},
		"a private one, without a credential":  {root, none, "sha256:new", store.Content{Digest: "sha256:new"}, proof(ref), plan.Image{}},
		"a private one, by another credential": {root, stranger, "sha256:new", store.Content{Digest: "sha256:new"}, proof(ref), plan.Image{}},
		"credentials that cannot be read":      {root, unreadable, "sha256:new", store.Content{Digest: "sha256:new"}, image.Anonymous, plan.Image{}},
		"a name that is none":                  {Image{Name: "root", Reference: "Q:?"}, none, "sha256:new", store.Content{Digest: "sha256:new"}, image.Anonymous, plan.Image{}},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.store.tags[full], f.store.images[tt.has], f.store.proofs[tt.has] = tt.tag, true, []string{tt.proof}
			if diff := cmp.Diff(tt.want, f.state(t, web, tt.image, tt.keys)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestWhatTheStoreCannotTellIsAnError(t *testing.T) {
	for _, method := range []string{"Recall", "Image", "Allowed"} {
		t.Run(method, func(t *testing.T) {
			f := newFixture(t)
			f.push(full, remote{digest: "sha256:new"})
			f.pull(t, web, root, none)
			broken := errors.New("input/output error")
			f.store.fail(method, broken)
			if got, err := f.State(web, root, none); !errors.Is(err, broken) {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

func TestAPullMakesAnImageReady(t *testing.T) {
	for name, tt := range map[string]struct {
		image     Image
		asked     string
		remembers bool
		bytes     float64
	}{
		"by a tag":                    {root, full, true, mib},
		"by the digest that a VM had": {pinned, full + "@sha256:old", false, mib},
		"a kernel and its initrd":     {kernel, full, true, 2 * mib},
		"a kernel alone":              {Image{Name: plan.Kernel, Reference: full, Kernel: "/boot/kernel"}, full, true, mib},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.push(full, remote{digest: "sha256:new", size: mib})
			f.push(full+"@sha256:old", remote{digest: "sha256:old", size: mib})
			f.pull(t, web, tt.image, none)
			want := plan.Image{State: plan.ImageReady, Digest: "sha256:new"}
			if tt.image.Digest != "" {
				want.Digest = tt.image.Digest
			}
			if diff := cmp.Diff(want, f.state(t, web, tt.image, none)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if diff := cmp.Diff([]string{tt.asked}, f.asked); diff != "" {
				t.Errorf("asked for, -want +got:\n%s", diff)
			}
			if _, remembers := f.store.tags[full]; remembers != tt.remembers {
				t.Errorf("remembers the tag: %t", remembers)
			}
			if pulls, bytes := count(t, f.Metrics.Pulls), count(t, f.Metrics.Bytes); pulls != 1 || bytes != tt.bytes {
				t.Errorf("counted %v pulls of %v bytes", pulls, bytes)
			}
		})
	}
}

func TestAPullTellsItsProgress(t *testing.T) {
	f := newFixture(t)
	r := f.push(full, remote{digest: "sha256:new", size: 6 * mib, begun: make(chan struct{}), hold: make(chan struct{})})
	answer := make(chan struct{})
	f.answer(answer)
	f.Start(web, root, none)
	f.Start(web, root, none) // it goes on already
	progress := func(want string) {
		t.Helper()
		if diff := cmp.Diff(plan.Image{State: plan.ImagePulling, Progress: want}, f.state(t, web, root, none)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	progress("asking the registry")
	if got := f.state(t, db, root, none); got.State != plan.ImageMissing {
		t.Errorf("another VM's image is %+v", got)
	}
	f.Forget(web) // only what failed
	progress("asking the registry")
	close(answer)
	<-r.begun
	progress("3 MiB")
	close(r.hold)
	<-f.woken
	if len(f.asked) != 1 {
		t.Errorf("asked the registry for %q", f.asked)
	}
}

func TestATransferThatIsSharedIsCountedOnce(t *testing.T) {
	f := newFixture(t)
	r := f.push(full, remote{digest: "sha256:new", size: mib, begun: make(chan struct{}), hold: make(chan struct{})})
	f.Start(web, root, none)
	<-r.begun
	f.Start(db, root, none)
	<-f.store.joined
	close(r.hold)
	<-f.woken
	<-f.woken
	for _, vm := range []types.UID{web, db} {
		if got := f.state(t, vm, root, none); got.State != plan.ImageReady {
			t.Errorf("the image of %s is %+v", vm, got)
		}
	}
	if pulls, bytes := count(t, f.Metrics.Pulls), count(t, f.Metrics.Bytes); pulls != 2 || bytes != mib {
		t.Errorf("counted %v pulls of %v bytes", pulls, bytes)
	}
}

func TestATransferThatStallsOrFailsMeetsNobodyElse(t *testing.T) {
	const mirror = "mirror.example.com/debian:12"
	for name, tt := range map[string]struct {
		reference string // of who has a good transfer of the same digest
		private   bool
		keys      Keys
	}{
		"by another reference":  {full, false, none},
		"by another credential": {mirror, true, team},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			bad, good := Image{Name: "root", Reference: mirror}, Image{Name: "root", Reference: tt.reference}
			slow := f.push(mirror, remote{digest: "sha256:new", begun: make(chan struct{}), hold: make(chan struct{}), err: errors.New("the line went dead")})
			f.Start(web, bad, none)
			<-slow.begun
			f.push(tt.reference, remote{digest: "sha256:new", private: tt.private})
			f.Start(db, good, tt.keys)
			select {
			case <-f.store.joined:
				t.Fatal("it waits for the other transfer")
			case <-f.woken:
			}
			if got := f.state(t, db, good, tt.keys); got.State != plan.ImageReady {
				t.Errorf("by the good transfer: %+v", got)
			}
			close(slow.hold)
			<-f.woken
			if got := f.state(t, web, bad, none); got.State != plan.ImageFailed {
				t.Errorf("by the bad transfer: %+v", got)
			}
		})
	}
}

func TestAFailedPullRestsLongerEachTime(t *testing.T) {
	f := newFixture(t)
	for n, rest := range []time.Duration{2, 4, 8, 16, 32, 60, 60} {
		f.pull(t, web, root, none)
		got := f.state(t, web, root, none)
		if got.State != plan.ImageFailed || fault.ReasonOf(got.Err) != v1alpha1.ReasonImageNotFound || got.Retry.Sub(f.clock) != rest*time.Second {
			t.Fatalf("attempt %d: %+v, want it to rest for %d s", n, got, rest)
		}
		f.pass(rest * time.Second)
	}
	answer := make(chan struct{})
	f.answer(answer)
	f.Start(web, root, none)
	if got := f.state(t, web, root, none); got.State != plan.ImagePulling || got.Err == nil {
		t.Errorf("while it is tried again: %+v, want the error of the last attempt", got)
	}
	close(answer)
	<-f.woken
	f.Forget(web)
	if got := f.state(t, web, root, none); got.State != plan.ImageMissing {
		t.Errorf("once forgotten: %+v", got)
	}
	f.pull(t, web, root, none)
	if got := f.state(t, web, root, none).Retry.Sub(f.clock); got != firstRetry {
		t.Errorf("once forgotten it rests for %s", got)
	}
	if got := count(t, f.Metrics.Failures.WithLabelValues(string(v1alpha1.ReasonImageNotFound))); got != 9 {
		t.Errorf("counted %v failures", got)
	}
}

func TestAPrivateImageIsNotGivenToWhoeverSharesTheNode(t *testing.T) {
	f := newFixture(t)
	f.push(full, remote{digest: "sha256:new", private: true})
	f.pull(t, web, root, team)
	if got := f.state(t, web, root, team); got.State != plan.ImageReady {
		t.Fatalf("the team's image is %+v", got)
	}
	if got := f.state(t, db, root, stranger); got.State != plan.ImageMissing {
		t.Errorf("to a stranger it is %+v", got)
	}
	f.pull(t, db, root, stranger)
	if got := f.state(t, db, root, stranger); fault.ReasonOf(got.Err) != v1alpha1.ReasonImageUnauthorized {
		t.Errorf("to a stranger who asks it is %+v", got)
	}
}

func TestAFailureNamesItsImageOnce(t *testing.T) {
	lost := fault.ByTime(v1alpha1.ReasonRegistryUnreachable, fmt.Errorf("image %s: the line went dead", full))
	broken := fault.ByTime(v1alpha1.ReasonStoreFailed, errors.New("input/output error"))
	for name, tt := range map[string]struct {
		image  Image
		keys   Keys
		err    error            // of the transfer
		store  map[string]error // by method
		reason v1alpha1.Reason
	}{
		"its name":       {Image{Reference: "quay.io/a/debian:12:13"}, none, nil, nil, v1alpha1.ReasonImageInvalid},
		"the registry":   {Image{Reference: "quay.io/a/debian:13"}, none, nil, nil, v1alpha1.ReasonImageNotFound},
		"the transfer":   {root, none, lost, nil, v1alpha1.ReasonRegistryUnreachable},
		"the store":      {root, none, nil, map[string]error{"Import": broken}, v1alpha1.ReasonStoreFailed},
		"access":         {root, none, nil, map[string]error{"Allow": broken}, v1alpha1.ReasonStoreFailed},
		"what it meant":  {root, none, nil, map[string]error{"Remember": broken}, v1alpha1.ReasonStoreFailed},
		"no credentials": {root, unreadable, nil, nil, v1alpha1.ReasonInternalError},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.push(full, remote{digest: "sha256:new", err: tt.err})
			for method, err := range tt.store {
				f.store.fail(method, err)
			}
			f.pull(t, web, tt.image, tt.keys)
			got := f.state(t, web, tt.image, tt.keys)
			if got.State != plan.ImageFailed || fault.ReasonOf(got.Err) != tt.reason {
				t.Fatalf("%+v, want %s", got, tt.reason)
			}
			if tt.reason == v1alpha1.ReasonInternalError {
				if !errors.Is(got.Err, errNoSecret) {
					t.Error(got.Err)
				}
			} else if n := strings.Count(got.Err.Error(), tt.image.Reference); n != 1 {
				t.Errorf("names the image %d times: %v", n, got.Err)
			}
			if n := count(t, f.Metrics.Failures.WithLabelValues(string(tt.reason))); n != 1 || count(t, f.Metrics.Pulls) != 0 {
				t.Errorf("counted %v failures", n)
			}
		})
	}
}

func TestAFullStoreIsClearedBeforeThePullIsTriedAgain(t *testing.T) {
	f := newFixture(t)
	f.push(full, remote{digest: "sha256:new"})
	f.store.fail("Import", fault.ByTime(v1alpha1.ReasonStoreFull, errors.New("no space left on device")))
	f.unused = []store.Image{{}, {}}
	f.pull(t, web, root, none)
	if n := count(t, f.Metrics.Removals); n != 2 || f.removed != 1 {
		t.Errorf("counted %v removals, told %d times", n, f.removed)
	}
	if got := f.state(t, web, root, none); fault.ReasonOf(got.Err) != v1alpha1.ReasonStoreFull {
		t.Errorf("%+v", got)
	}
}

func TestUnusedImagesAreRemovedAtOnceAndUntilTheAgentEnds(t *testing.T) {
	f := newFixture(t)
	f.unused, f.collect = []store.Image{{}}, errors.New("and one could not be removed")
	for range 2 { // the second time there is none
		ctx, cancel := context.WithCancel(t.Context())
		f.Collect = func(time.Time) ([]store.Image, error) {
			cancel()
			return f.collected()
		}
		if err := f.GarbageCollect(ctx); err != nil {
			t.Error(err)
		}
		if n := count(t, f.Metrics.Removals); n != 1 || f.removed != 1 {
			t.Errorf("counted %v removals, told %d times", n, f.removed)
		}
	}
}
