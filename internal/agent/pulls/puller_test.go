package pulls

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
)

const (
	web  = types.UID("web")
	db   = types.UID("db")
	full = "quay.io/a/debian:12"
	afar = "https://example.com/disk.qcow2"
	mib  = 1 << 20
)

var (
	root   = machine.Image{For: "root", Reference: "quay.io/a/debian:12"}
	pinned = machine.Image{For: "root", Reference: "quay.io/a/debian:12", Digest: "sha256:old"}
	kernel = machine.Image{For: machine.ForKernel, Reference: "quay.io/a/debian:12", Kernel: "/boot/kernel", Initrd: "/boot/initrd"}
)

// pull starts a pull and waits for its end.
func (f *fixture) pull(t *testing.T, vm types.UID, i machine.Image, keys Keys) {
	t.Helper()
	f.Start(vm, "default", i, keys)
	if woken := <-f.woken; woken != vm {
		t.Fatalf("woke %s, want %s", woken, vm)
	}
}

func (f *fixture) state(t *testing.T, vm types.UID, i machine.Image, keys Keys) plan.Image {
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
		image machine.Image
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
		"a kernel":                             {kernel, none, "sha256:new", contentOf(kernel, "sha256:new"), image.Anonymous, ready("sha256:new")},
		"an image's disk is not its kernel":    {kernel, none, "sha256:new", store.Content{Digest: "sha256:new"}, image.Anonymous, plan.Image{}},
		"a private one, by the credential":     {root, team, "sha256:new", store.Content{Digest: "sha256:new"}, proof(ref), ready("sha256:new")},
		"a private one, without a credential":  {root, none, "sha256:new", store.Content{Digest: "sha256:new"}, proof(ref), plan.Image{}},
		"a private one, by another credential": {root, stranger, "sha256:new", store.Content{Digest: "sha256:new"}, proof(ref), plan.Image{}},
		"credentials that cannot be read":      {root, unreadable, "sha256:new", store.Content{Digest: "sha256:new"}, image.Anonymous, plan.Image{}},
		"a name that is none":                  {machine.Image{For: "root", Reference: "Q:?"}, none, "sha256:new", store.Content{Digest: "sha256:new"}, image.Anonymous, plan.Image{}},
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

func TestARegistryIsAskedAsThePolicySays(t *testing.T) {
	f := newFixture(t)
	policy := func(p corev1.PullPolicy) machine.Image {
		i := root
		i.Pull = p
		return i
	}
	is := func(vm types.UID, i machine.Image, want plan.ImageState, digest string) plan.Image {
		t.Helper()
		got := f.state(t, vm, i, none)
		if got.State != want || got.Digest != digest {
			t.Errorf("%s, %s: %+v", vm, i.Pull, got)
		}
		return got
	}
	never, always := policy(corev1.PullNever), policy(corev1.PullAlways)
	absent := is(web, never, plan.ImageFailed, "")
	if fault.ReasonOf(absent.Err) != v1alpha1.ReasonImageNotFound || fault.ClassOf(absent.Err) != fault.User || !absent.Retry.After(f.Now()) {
		t.Errorf("of one that is absent, and never to be pulled, it says %+v", absent)
	}
	f.Start(web, "default", never, none)
	f.push(full, &remote{digest: "sha256:new"})
	f.pull(t, web, policy(corev1.PullIfNotPresent), none)
	is(web, never, plan.ImageReady, "sha256:new")
	is(web, policy(corev1.PullIfNotPresent), plan.ImageReady, "sha256:new")

	f.push(full, &remote{digest: "sha256:newer"})
	is(web, always, plan.ImageMissing, "")
	f.pull(t, web, always, none)
	is(web, always, plan.ImageReady, "sha256:newer")
	is(db, always, plan.ImageMissing, "") // another VM asks anew
	recorded := always
	recorded.Digest = "sha256:new"
	is(db, recorded, plan.ImageReady, "sha256:new") // what exists does not change
	f.Retain(web, []machine.Image{recorded})
	is(web, always, plan.ImageMissing, "")
	is(web, policy(corev1.PullIfNotPresent), plan.ImageReady, "sha256:newer")
}

func TestWhatTheStoreCannotTellIsAnError(t *testing.T) {
	for _, method := range []string{"ResolveTag", "Image", "HasAccess"} {
		t.Run(method, func(t *testing.T) {
			f := newFixture(t)
			f.push(full, &remote{digest: "sha256:new"})
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
		image     machine.Image
		asked     string
		remembers bool
		bytes     float64
	}{
		"by a tag":                    {root, full, true, mib},
		"by the digest that a VM had": {pinned, full + "@sha256:old", false, mib},
		"a kernel and its initrd":     {kernel, full, true, 2 * mib},
		"a URL without a checksum":    {machine.Image{For: "root", Reference: afar}, afar, true, mib},
		"a kernel alone":              {machine.Image{For: machine.ForKernel, Reference: full, Kernel: "/boot/kernel"}, full, true, mib},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.push(full, &remote{digest: "sha256:new", size: mib})
			f.push(full+"@sha256:old", &remote{digest: "sha256:old", size: mib})
			f.push(afar, &remote{digest: "sha256:new", late: true, size: mib})
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
			if _, remembers := f.store.tags[tt.asked]; remembers != tt.remembers {
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
	r := f.push(full, &remote{digest: "sha256:new", size: 6 * mib, begun: make(chan struct{}), hold: make(chan struct{})})
	answer := make(chan struct{})
	f.answer(answer)
	f.Start(web, "default", root, none)
	f.Start(web, "default", root, none) // it goes on already
	progress := func(want string) {
		t.Helper()
		if diff := cmp.Diff(plan.Image{State: plan.ImagePulling, Progress: want}, f.state(t, web, root, none)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
	progress("resolving the reference")
	if got := f.state(t, db, root, none); got.State != plan.ImageMissing {
		t.Errorf("another VM's image is %+v", got)
	}
	f.Retain(web, []machine.Image{root}) // it is still wanted
	progress("resolving the reference")
	close(answer)
	<-r.begun
	progress("3 MiB, 50 % of what is sent")
	f.pass(2 * time.Second)
	close(r.hold)
	<-f.woken
	if diff := cmp.Diff([]string{"web: Pulled image " + full + ": 3.0 MiB in 2.0 s, 1.5 MiB/s"}, f.said); diff != "" {
		t.Errorf("told, -want +got:\n%s", diff)
	}
	if len(f.asked) != 1 {
		t.Errorf("asked the registry for %q", f.asked)
	}
}

func TestOneSourceIsAskedOnceForAllThatNameIt(t *testing.T) {
	f := newFixture(t)
	r := f.push(full, &remote{digest: "sha256:new", size: mib, begun: make(chan struct{}), hold: make(chan struct{})})
	f.Start(web, "default", root, none)
	<-r.begun
	f.Start(db, "shop", root, none)
	if diff := cmp.Diff(plan.Image{State: plan.ImagePulling, Progress: "0 MiB, 50 % of what is sent"}, f.state(t, db, root, none)); diff != "" {
		t.Errorf("who joins it, -want +got:\n%s", diff)
	}
	close(r.hold)
	<-f.woken
	<-f.woken
	for _, vm := range []types.UID{web, db} {
		if got := f.state(t, vm, root, none); got.State != plan.ImageReady {
			t.Errorf("the image of %s is %+v", vm, got)
		}
	}
	if pulls, bytes := count(t, f.Metrics.Pulls), count(t, f.Metrics.Bytes); pulls != 1 || bytes != mib || len(f.asked) != 1 {
		t.Errorf("counted %v pulls of %v bytes, asked for %q", pulls, bytes, f.asked)
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
			bad, good := machine.Image{For: "root", Reference: mirror}, machine.Image{For: "root", Reference: tt.reference}
			slow := f.push(mirror, &remote{digest: "sha256:new", begun: make(chan struct{}), hold: make(chan struct{}), err: errors.New("the line went dead")})
			f.Start(web, "default", bad, none)
			<-slow.begun
			f.push(tt.reference, &remote{digest: "sha256:new", private: tt.private})
			f.Start(db, "default", good, tt.keys)
			<-f.woken // or it waits for the other transfer
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
	for n, rest := range []time.Duration{2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600} {
		f.pull(t, web, root, none)
		got := f.state(t, web, root, none)
		if got.State != plan.ImageFailed || fault.ReasonOf(got.Err) != v1alpha1.ReasonImageNotFound || got.Retry.Sub(f.clock) != rest*time.Second {
			t.Fatalf("attempt %d: %+v, want it to rest for %d s", n, got, rest)
		}
		f.pass(rest * time.Second)
	}
	answer := make(chan struct{})
	f.answer(answer)
	f.Start(web, "default", root, none)
	if got := f.state(t, web, root, none); got.State != plan.ImagePulling || got.Err == nil {
		t.Errorf("while it is tried again: %+v, want the error of the last attempt", got)
	}
	close(answer)
	<-f.woken
	f.Retain(web, nil)
	if got := f.state(t, web, root, none); got.State != plan.ImageMissing {
		t.Errorf("once forgotten: %+v", got)
	}
	f.pull(t, web, root, none)
	if got := f.state(t, web, root, none).Retry.Sub(f.clock); got != minBackoff {
		t.Errorf("once forgotten it rests for %s", got)
	}
	if got := count(t, f.Metrics.Failures.WithLabelValues(string(v1alpha1.ReasonImageNotFound))); got != 15 {
		t.Errorf("counted %v failures", got)
	}
}

func TestWhatMayPassIsTriedAgainEachMinute(t *testing.T) {
	f := newFixture(t)
	f.refuses = fault.NewTransient(v1alpha1.ReasonRegistryUnreachable, errors.New("connection refused"))
	for n, rest := range []time.Duration{2, 4, 8, 16, 32, 60, 60} {
		f.pull(t, web, root, none)
		if got := f.state(t, web, root, none); got.Retry.Sub(f.clock) != rest*time.Second {
			t.Fatalf("attempt %d: %+v, want it to rest for %d s", n, got, rest)
		}
		f.pass(rest * time.Second)
	}
}

// TestARegistryIsNotAskedBeforeItSaid: also not for another VM that wants the same.
func TestARegistryIsNotAskedBeforeItSaid(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "600")
		w.WriteHeader(http.StatusTooManyRequests)
	}))
	t.Cleanup(server.Close)
	host := strings.TrimPrefix(server.URL, "http://")
	ref, err := image.ParseReference(host + "/a")
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	_, f.refuses = image.New(image.Options{PlainHTTP: []string{host}}).Resolve(t.Context(), ref, image.Keychain{})
	f.pull(t, web, root, none)
	f.Start(db, "default", root, none)
	for _, vm := range []types.UID{web, db} {
		if got := f.state(t, vm, root, none); got.State != plan.ImageFailed || got.Retry.Sub(f.clock) != 600*time.Second {
			t.Errorf("%s: %+v", vm, got)
		}
	}
	if len(f.asked) != 1 {
		t.Errorf("asked for %q", f.asked)
	}
}

// TestACorrectionIsSeenAtOnce, however seldom a pull that only the user can correct is tried again.
func TestACorrectionIsSeenAtOnce(t *testing.T) {
	f := newFixture(t)
	f.push(full, &remote{digest: "sha256:new", private: true})
	for range 20 {
		f.pull(t, web, root, none)
		f.pass(time.Hour)
	}
	f.pull(t, web, root, none)
	if got := f.state(t, web, root, none); got.State != plan.ImageFailed || got.Retry.Sub(f.clock) != time.Hour {
		t.Fatalf("%+v", got)
	}
	if got := f.state(t, web, root, unreadable); got.State != plan.ImageFailed {
		t.Errorf("while the Secret cannot be read: %+v", got)
	}
	if got := f.state(t, web, root, team); got.State != plan.ImageMissing {
		t.Errorf("with another Secret: %+v", got)
	}
	f.pull(t, web, root, team)
	if got := f.state(t, web, root, team); got.State != plan.ImageReady {
		t.Errorf("%+v", got)
	}
	// Another spec, or another VM.
	f.pull(t, db, pinned, none)
	f.Retain(db, nil)
	f.push(full+"@sha256:old", &remote{digest: "sha256:old"})
	f.pull(t, "new", pinned, none)
	if got := f.state(t, "new", pinned, none); got.State != plan.ImageReady {
		t.Errorf("of a new VM: %+v", got)
	}
	if n := len(f.Puller.pulls); n != 0 {
		t.Errorf("%d pulls are left", n)
	}
}

func TestAPullEndsWithTheLastVMThatWantsIt(t *testing.T) {
	f := newFixture(t)
	r := f.push(full, &remote{digest: "sha256:new", begun: make(chan struct{}), hold: make(chan struct{})})
	data := root
	data.For = "data"
	f.Start(web, "default", root, none)
	<-r.begun
	f.Start(web, "default", data, none)
	f.Start(db, "shop", root, none)
	running := func() int {
		f.Puller.mu.Lock()
		defer f.Puller.mu.Unlock()
		return len(f.Puller.running)
	}
	f.Retain(web, []machine.Image{data})
	f.Retain(web, nil)
	if running() != 1 {
		t.Fatal("it ended though another VM wants it")
	}
	if got := f.state(t, web, root, none); got.State != plan.ImageMissing {
		t.Errorf("of who does not want it any more: %+v", got)
	}
	f.Retain(db, []machine.Image{pinned}) // its spec has changed
	for deadline := time.Now().Add(10 * time.Second); running() > 0; runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("it goes on")
		}
	}
	if len(f.woken) != 0 || count(t, f.Metrics.Pulls) != 0 || len(f.Puller.pulls)+len(f.Puller.wants) != 0 {
		t.Errorf("it woke %d VMs; %d pulls are left", len(f.woken), len(f.Puller.pulls))
	}
	if f.store.images[store.Content{Digest: "sha256:new"}] {
		t.Error("it went on to its end")
	}
}

// TestOneNamespaceCannotFillTheNode: it has fewer places than there are, and its queue is its own.
func TestOneNamespaceCannotFillTheNode(t *testing.T) {
	f := newFixture(t)
	f.Puller.Limits = Limits{PerNode: 3, PerNamespace: 2}
	begun, release := make(chan string, 99), map[string]chan struct{}{}
	start := func(namespace string, names ...string) {
		for _, name := range names {
			reference := "quay.io/a/" + name + ":1"
			release[name] = make(chan struct{})
			r := f.push(reference, &remote{digest: "sha256:" + name, begun: make(chan struct{}), hold: release[name]})
			go func() {
				for range r.begun {
					begun <- name
				}
			}()
			t.Cleanup(func() { close(r.begun) })
			f.Start(types.UID(name), namespace, machine.Image{Reference: reference}, none)
		}
	}
	start("greedy", "g1", "g2", "g3", "g4", "g5")
	expect := func(names ...string) {
		t.Helper()
		var got []string
		for range names {
			got = append(got, <-begun)
		}
		slices.Sort(got)
		if !slices.Equal(got, names) {
			t.Fatalf("%q began, want %q", got, names)
		}
	}
	expect("g1", "g2")
	if got := f.state(t, "g3", machine.Image{Reference: "quay.io/a/g3:1"}, none); got.State != plan.ImagePulling || got.Progress != "waiting for other pulls on the node" {
		t.Errorf("in the queue: %+v", got)
	}
	start("modest", "m1", "m2")
	expect("m1")
	start("other", "o1")
	close(release["g1"])
	expect("o1") // who has none is before m2, and before g3 that waits for longer
	close(release["m1"])
	expect("m2")
	close(release["o1"])
	expect("g3")
	f.Retain("g4", nil) // while it waits
	close(release["g2"])
	expect("g5")
	for _, name := range []string{"m2", "g3", "g5"} {
		close(release[name])
	}
	for range 7 {
		<-f.woken
	}
	if len(f.Puller.queue)+len(f.Puller.running) != 0 {
		t.Errorf("%d wait, %d run", len(f.Puller.queue), len(f.Puller.running))
	}
}

// TestWhoWantsTheSameAsAFullNamespaceDoesNotWaitForIt: a pull that two want is the turn of either.
func TestWhoWantsTheSameAsAFullNamespaceDoesNotWaitForIt(t *testing.T) {
	f := newFixture(t)
	f.Puller.Limits = Limits{PerNode: 2, PerNamespace: 1}
	slow := f.push("quay.io/a/slow:1", &remote{digest: "sha256:slow", begun: make(chan struct{}), hold: make(chan struct{})})
	f.push(full, &remote{digest: "sha256:new"})
	f.Start("one", "greedy", machine.Image{Reference: "quay.io/a/slow:1"}, none)
	<-slow.begun
	f.Start(web, "greedy", root, none)
	f.Start(db, "shop", root, none)
	<-f.woken
	<-f.woken
	if got := f.state(t, db, root, none); got.State != plan.ImageReady {
		t.Errorf("%+v", got)
	}
	close(slow.hold)
	<-f.woken
}

// TestABadImageIsDownloadedOnce in hours, and asked for again all the same: its name may mean another by then.
func TestABadImageIsDownloadedOnce(t *testing.T) {
	notDisk := fault.NewUser(v1alpha1.ReasonImageNotDisk, fmt.Errorf("image %s: it has no file in /disk", full))
	for name, tt := range map[string]struct {
		transfer, store error
		transfers       int32
	}{
		"it holds no disk":         {notDisk, nil, 1},
		"what it holds is no disk": {nil, fault.NewUser(v1alpha1.ReasonImageUnsafe, errors.New("it has a backing file")), 1},
		"the line went dead":       {fault.NewTransient(v1alpha1.ReasonRegistryUnreachable, errors.New("EOF")), nil, 9},
		"bytes of another digest":  {fault.NewUser(v1alpha1.ReasonImageDigestMismatch, errors.New("not what its digest says")), nil, 9},
		"the node's disk fails":    {nil, fault.NewTransient(v1alpha1.ReasonStoreFailed, errors.New("input/output error")), 9},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			r := f.push(full, &remote{digest: "sha256:new", err: tt.transfer})
			f.store.fail("Import", tt.store)
			for range 9 {
				f.pull(t, web, root, none)
				f.pass(verdictLife / 10)
			}
			if got := r.transfers.Load(); got != tt.transfers || len(f.asked) != 9 {
				t.Errorf("%d transfers, asked %d times", got, len(f.asked))
			}
			reason := tt.transfer
			if reason == nil {
				reason = tt.store
			}
			if got := f.state(t, web, root, none); fault.ReasonOf(got.Err) != fault.ReasonOf(reason) {
				t.Errorf("%+v", got)
			}
			// The VM made anew, and another name of it: names are nobody else's business.
			f.Retain(web, nil)
			f.pull(t, db, root, none)
			if got := r.transfers.Load(); tt.transfers == 1 && got != 1 {
				t.Errorf("%d transfers for another VM", got)
			}
			other := f.push("mirror.example.com/x:1", &remote{digest: "sha256:new"})
			f.pull(t, db, machine.Image{Reference: "mirror.example.com/x:1"}, none)
			if other.transfers.Load() != 1 {
				t.Error("a mirror was not asked")
			}
			// What the name means now is another image.
			f.store.fail("Import", nil)
			f.push(full, &remote{digest: "sha256:good"})
			f.pass(time.Minute)
			f.pull(t, db, root, none)
			if got := f.state(t, db, root, none); got.State != plan.ImageReady {
				t.Errorf("once it is mended: %+v", got)
			}
		})
	}
}

// TestWhatFoundNoRoomIsNotBegunBeforeThereIs: or it would fill the disk each minute.
func TestWhatFoundNoRoomIsNotBegunBeforeThereIs(t *testing.T) {
	f := newFixture(t)
	r := f.push(full, &remote{digest: "sha256:new", size: 6 * mib})
	noRoom := fault.NewTransient(v1alpha1.ReasonStoreFull, errors.New("kept for guests"))
	f.store.fail("Import", noRoom)
	f.store.fail("Room", noRoom)
	for range 3 {
		f.pull(t, web, root, none)
		f.pass(time.Minute)
	}
	if r.transfers.Load() != 1 {
		t.Errorf("%d transfers", r.transfers.Load())
	}
	f.store.fail("Import", nil)
	f.push(full, &remote{digest: "sha256:smaller"})
	f.pull(t, web, root, none)
	if diff := cmp.Diff([]int64{0, 6 * mib, 6 * mib, 0}, f.store.needs); diff != "" {
		t.Errorf("known to need, -want +got:\n%s", diff)
	}
}

// TestAManifestAloneGivesNoAccess: whoever may read the manifest of a private image could serve it from a registry of
// his own, and have the disk that the node has.
func TestAManifestAloneGivesNoAccess(t *testing.T) {
	const forged = "evil.example.com/a:1"
	f := newFixture(t)
	f.push(full, &remote{digest: "sha256:new", private: true})
	f.pull(t, web, root, team)
	bad := f.push(forged, &remote{digest: "sha256:new", err: fault.NewUser(v1alpha1.ReasonImageNotFound, errors.New("it has the manifest, but not its layer"))})
	forger := machine.Image{For: "root", Reference: forged}
	f.pull(t, db, forger, none)
	if got := f.state(t, db, forger, none); got.State != plan.ImageFailed || bad.transfers.Load() != 1 {
		t.Errorf("%+v", got)
	}
	if got := f.state(t, db, root, none); got.State != plan.ImageMissing {
		t.Errorf("by its own name: %+v", got)
	}
	// Who serves all of it may have it, and once is enough.
	mirror := f.push("mirror.example.com/a:1", &remote{digest: "sha256:new", size: mib})
	for _, i := range []machine.Image{{Reference: "mirror.example.com/a:1"}, {Reference: "mirror.example.com/a:1", Digest: "sha256:new"}} {
		f.push("mirror.example.com/a:1@sha256:new", mirror)
		f.Puller.Store.(*memory).proofs[store.Content{Digest: "sha256:new"}] = slices.DeleteFunc(f.store.proofs[store.Content{Digest: "sha256:new"}], func(p string) bool { return p == image.Anonymous })
		f.pull(t, db, i, none)
		if got := f.state(t, db, i, none); got.State != plan.ImageReady || mirror.transfers.Load() != 1 {
			t.Errorf("from a mirror: %+v, %d transfers", got, mirror.transfers.Load())
		}
	}
}

func TestAPrivateImageIsNotGivenToWhoeverSharesTheNode(t *testing.T) {
	f := newFixture(t)
	f.push(full, &remote{digest: "sha256:new", private: true})
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
	lost := fault.NewTransient(v1alpha1.ReasonRegistryUnreachable, fmt.Errorf("image %s: the line went dead", full))
	broken := fault.NewTransient(v1alpha1.ReasonStoreFailed, errors.New("input/output error"))
	for name, tt := range map[string]struct {
		image  machine.Image
		keys   Keys
		err    error            // of the transfer
		store  map[string]error // by method
		reason v1alpha1.Reason
	}{
		"its name":       {machine.Image{Reference: "quay.io/a/debian:12:13"}, none, nil, nil, v1alpha1.ReasonImageInvalid},
		"the registry":   {machine.Image{Reference: "quay.io/a/debian:13"}, none, nil, nil, v1alpha1.ReasonImageNotFound},
		"the transfer":   {root, none, lost, nil, v1alpha1.ReasonRegistryUnreachable},
		"the store":      {root, none, nil, map[string]error{"Import": broken}, v1alpha1.ReasonStoreFailed},
		"access":         {root, none, nil, map[string]error{"GrantAccess": broken}, v1alpha1.ReasonStoreFailed},
		"what it meant":  {root, none, nil, map[string]error{"SetTag": broken}, v1alpha1.ReasonStoreFailed},
		"no credentials": {root, unreadable, nil, nil, v1alpha1.ReasonInternalError},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			f.push(full, &remote{digest: "sha256:new", err: tt.err})
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
	f.push(full, &remote{digest: "sha256:new"})
	f.store.fail("Import", fault.NewTransient(v1alpha1.ReasonStoreFull, errors.New("no space left on device")))
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
