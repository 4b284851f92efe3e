package pulls

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/test/badregistry"
	"github.com/berth-dev/berth/test/env"
)

// whole is a Puller with the real store and the real client of registries, and a registry.
type whole struct {
	*fixture
	registry *badregistry.Registry
	host     string
	images   string // the store's directory of images
}

func newWhole(t *testing.T, limits Limits) *whole {
	t.Helper()
	if os.Geteuid() != 0 {
		env.Missing(t, "needs root: a store gives files to the users of guests")
	}
	w := &whole{fixture: newFixture(t), registry: badregistry.New()}
	listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.host = listener.Addr().String()
	t.Cleanup(w.registry.Serve(listener))
	root := t.TempDir()
	images := store.New(root, env.Tmpfs(t), store.Reserve{})
	if err := images.Check(); err != nil {
		t.Fatal(err)
	}
	w.images = filepath.Join(root, "images")
	client := image.New(image.Options{PlainHTTP: []string{w.host}})
	o := w.Puller.Options
	o.Store, o.Import, o.Limits = images, images.Import, limits
	o.Resolve = func(ctx context.Context, ref image.Reference, keys image.Keychain) (Resolved, error) {
		found, err := client.Resolve(ctx, ref, keys)
		if err != nil {
			return Resolved{}, err
		}
		return Resolved{Digest: func() string { return found.Digest }, Fingerprint: found.Fingerprint, Layers: found}, nil
	}
	w.Puller = New(t.Context(), o)
	return w
}

// push pushes an image, and returns how a VM names it.
func (w *whole) push(repository string, i badregistry.Image) machine.Image {
	w.registry.Push(repository, i)
	return machine.Image{For: "root", Reference: w.host + "/" + repository}
}

// entries of the directory of images.
func (w *whole) entries(t *testing.T) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(w.images)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestHostileImagesAreRefused each with its reason, by name; nothing of them stays, and they are not downloaded again to
// see that once more.
func TestHostileImagesAreRefused(t *testing.T) {
	const long = 32 // MiB, more than sockets hold
	for name, tt := range map[string]struct {
		image  badregistry.Image
		kernel bool
		reason v1alpha1.Reason
		says   string
		blobs  int // how often the layer is asked for in three attempts
	}{
		"a symbolic link":       {badregistry.SymbolicLink(), false, v1alpha1.ReasonImageNotDisk, "no file /etc/shadow, to which its /disk/disk.img is a link", 2}, // the second time for what it leads to
		"a hard link":           {badregistry.HardLink(), false, v1alpha1.ReasonImageNotDisk, "no file /etc/shadow, to which its /disk/disk.img is a link", 2},     // the second time for what it leads to
		"a device":              {badregistry.Device(), false, v1alpha1.ReasonImageNotDisk, "no regular file", 1},
		"two disks":             {badregistry.TwoDisks(), false, v1alpha1.ReasonImageNotDisk, "more than one file in /disk (a.img and b.img)", 1},
		"a name outside":        {badregistry.Outside(), false, v1alpha1.ReasonImageNotDisk, "no file in /disk", 1},
		"a TiB that is not":     {badregistry.Tebibyte(), false, v1alpha1.ReasonImageTooLarge, "unpacks to more than", 1},
		"whiteouts":             {badregistry.Whiteouts(100), false, v1alpha1.ReasonImageNotDisk, "no file in /disk", 1},
		"a large kernel":        {badregistry.Boot(strings.Repeat("K", maxKernel+1)), true, v1alpha1.ReasonImageTooLarge, "the most is 134217728", 1},
		"a backing file":        {badregistry.Backed(), false, v1alpha1.ReasonImageUnsafe, "has a backing file: flatten it", 3},
		"a data file":           {badregistry.DataFile(), false, v1alpha1.ReasonImageUnsafe, "external data file: flatten it", 3},
		"VMware's":              {badregistry.VMDK(long), false, v1alpha1.ReasonImageNotDisk, "VMDK", 3},
		"a window that is full": {badregistry.Window(), false, "", "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWhole(t, Limits{PerNode: 1, PerNamespace: 1})
			i := w.push("hostile", tt.image)
			if tt.kernel {
				i.Kernel = "/boot/vmlinuz"
			}
			for range 3 {
				w.pull(t, web, i, none)
				w.pass(maxUserBackoff)
			}
			got := w.state(t, web, i, none)
			if tt.reason == "" { // strange, and harmless
				if got.State != plan.ImageReady {
					t.Errorf("%+v", got)
				}
				return
			}
			if got.State != plan.ImageFailed || fault.ReasonOf(got.Err) != tt.reason || fault.ClassOf(got.Err) != fault.User || !strings.Contains(got.Err.Error(), tt.says) {
				t.Errorf("%+v; want %s: …%s…", got, tt.reason, tt.says)
			}
			if left := w.entries(t); len(left) > 0 {
				t.Errorf("left %q", left)
			}
			if asked := w.registry.Asked("hostile"); asked != tt.blobs {
				t.Errorf("its layer was asked for %d times, want %d", asked, tt.blobs)
			}
			if tt.blobs == 3 { // its first bytes tell: no more of them are taken
				env.Eventually(t, "the answers to end", func() bool { return w.registry.Sending("hostile") == 0 })
				if sent := w.registry.Sent("hostile"); sent > long<<20/2 {
					t.Errorf("%d bytes of it were sent", sent)
				}
			}
		})
	}
}

// TestAMassOfHostileImages of one namespace takes the memory that its places may take, and another namespace has its
// image meanwhile: of the very digest that the first gets drop by drop.
func TestAMassOfHostileImages(t *testing.T) {
	if testing.Short() {
		t.Skip("weighs the heap, which the race detector makes another")
	}
	const places, each, largeWindow = 3, 25, 128 // pulls; MiB of each, as docs/resources.md says, and of one at a time
	w := newWhole(t, Limits{PerNode: 6, PerNamespace: places})
	disk := badregistry.Disk(strings.Repeat("the very disk ", 1<<16))
	wanted := w.push("good", disk)
	hostile := []machine.Image{w.push("mirror/drip", disk)}
	window, whiteouts := badregistry.Window(), badregistry.Whiteouts(100)
	for n := range 5 {
		hostile = append(hostile, w.push(fmt.Sprintf("window-%d/drip", n), window))
	}
	const drips = 2 // the mirror and the first window; there is no memory for another
	for n := range 6 {
		hostile = append(hostile, w.push(fmt.Sprintf("whiteouts-%d", n), whiteouts))
	}
	before, most := heap(), watchHeap()
	vm := func(n int) types.UID { return types.UID(fmt.Sprint("hostile-", n)) }
	for n, i := range hostile[:drips] {
		w.Start(vm(n), "hostile", i, none)
	}
	env.Eventually(t, "a window to be full", func() bool { return strings.HasPrefix(w.state(t, vm(1), hostile[1], none).Progress, "128 MiB") })
	for n, i := range hostile[drips:] {
		w.Start(vm(drips+n), "hostile", i, none)
	}
	w.Start(web, "shop", wanted, none)
	env.Eventually(t, "all but the two to come to an end", func() bool { return len(w.woken) == len(hostile)-drips+1 })
	if got := w.state(t, web, wanted, none); got.State != plan.ImageReady || w.registry.Sending("") != drips {
		t.Errorf("while %d drip, the other namespace's is %+v", w.registry.Sending(""), got)
	}
	for n, i := range hostile[drips:] {
		want := v1alpha1.ReasonImageNotDisk
		if strings.Contains(i.Reference, "window") {
			want = v1alpha1.ReasonPullingImage // it waits for memory
		}
		if got := w.state(t, vm(drips+n), i, none); got.State != plan.ImageFailed || fault.ReasonOf(got.Err) != want {
			t.Errorf("%s: %+v, want %s", i.Reference, got, want)
		}
	}
	for n := range drips {
		w.Retain(vm(n), nil)
	}
	env.Eventually(t, "the downloads to end with their VirtualMachines", func() bool { return w.registry.Sending("") == 0 })
	took := int64(most()-before) >> 20
	if t.Logf("they take %d MiB", took); took > places*each+largeWindow {
		t.Errorf("they take %d MiB, want at most %d", took, places*each+largeWindow)
	}
	env.Eventually(t, "the good image alone to be left", func() bool {
		left := slices.DeleteFunc(w.entries(t), func(name string) bool { return name == "refs.json" || name == "salt" })
		return len(left) == 1
	})
}

// watchHeap returns how to end it, and to have the most that was seen.
func watchHeap() (most func() uint64) {
	stop, ended := make(chan struct{}), make(chan struct{})
	var highest uint64
	go func() {
		defer close(ended)
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			highest = max(highest, heap())
			select {
			case <-stop:
				return
			case <-tick.C:
			}
		}
	}()
	return func() uint64 {
		close(stop)
		<-ended
		return highest
	}
}

// heap is what lives on the heap, and what has died there and is not freed yet.
func heap() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}
