package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/kube"
)

var errAway = errors.New("away")

// virtualMachines answers for the API server: "known" exists, "placed" has the berth "q", "unsure" cannot be read, all else is
// gone.
func virtualMachines(_ context.Context, uid types.UID) (*v1alpha1.VirtualMachine, error) {
	switch uid {
	case "known":
		return &v1alpha1.VirtualMachine{}, nil
	case "placed":
		return &v1alpha1.VirtualMachine{Status: v1alpha1.VirtualMachineStatus{Berth: &v1alpha1.BerthReference{PodUID: "q"}}}, nil
	case "unsure":
		return nil, errAway
	}
	return nil, nil
}

func guest(uid string) store.Guest {
	return store.Guest{Identity: store.Identity{Namespace: "shop", Name: "vm", UID: uid}}
}

func TestForeignDomains(t *testing.T) {
	const ours = `<domain><metadata><b:guest xmlns:b="https://berth.dev/domain/v1" vm="a"/></metadata></domain>`
	libvirt := &fakeLibvirt{
		list: map[string]libvirtd.Domain{"kept": {Name: "kept"}, "marked": {Name: "marked", ID: -1}, "other": {Name: "other"}, "bad": {Name: "bad", ID: -1}, "ended": {Name: "ended", ID: -1}},
		xml:  map[string]string{"kept": "<domain/>", "marked": ours, "other": "<domain/>", "bad": "<"},
	}
	r := &Reconciler{Options: Options{Libvirt: libvirt, Store: &fakeStore{guests: []store.Guest{guest("kept")}}}}
	check := func(name string, wantErr error, want ...[]string) {
		all, running, err := r.foreignDomains(t.Context(), []string{"had"})
		if diff := cmp.Diff(want, [][]string{all, running}); !errors.Is(err, wantErr) || diff != "" {
			t.Errorf("%s: %v, -want +got:\n%s", name, err, diff)
		}
	}
	check("all and those that run", nil, []string{"bad", "ended", "other"}, []string{"other"})
	libvirt.err = errAway
	check("libvirtd is away", errAway, []string{"had"}, nil)
}

func TestImages(t *testing.T) {
	used := time.Unix(1e9, 5)
	s := &fakeStore{images: []store.Image{{Content: store.Content{Digest: "sha256:b"}, Allocated: 2, LastUse: used}, {Content: store.Content{Digest: "sha256:a"}, Allocated: 1}}}
	r := &Reconciler{Options: Options{Store: s}}
	want := []v1alpha1.HostImage{
		{Digest: "sha256:a", Size: resource.NewQuantity(1, resource.BinarySI)}, {Digest: "sha256:b", Size: resource.NewQuantity(2, resource.BinarySI), LastUsed: &metav1.Time{Time: time.Unix(1e9, 0)}},
	}
	if diff := cmp.Diff(want, r.images(nil)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	s.err = errAway
	if diff := cmp.Diff(want, r.images(want)); diff != "" {
		t.Errorf("in a store that cannot be read, -want +got:\n%s", diff)
	}
	s.images, s.err = make([]store.Image, maxListed+1), nil
	for i := range maxListed {
		s.images[i].Digest, s.images[i].LastUse = "sha256:a", used
	}
	s.images[maxListed].Digest, s.images[maxListed].LastUse = "sha256:z", used.Add(time.Hour)
	if got := r.images(nil); len(got) != maxListed {
		t.Errorf("%d images are listed, at most %d may be", len(got), maxListed)
	} else if got[maxListed-1].Digest != "sha256:z" {
		t.Error("what was used last is not among those that are listed")
	}
}

// endingBerth is a berth of a VirtualMachine that is being deleted.
func endingBerth(uid, owner types.UID) *corev1.Pod {
	now := metav1.Now()
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: "shop", Name: string(uid), UID: uid, DeletionTimestamp: &now, Finalizers: []string{berth.PodFinalizer},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: v1alpha1.GroupVersion.String(), Kind: "VirtualMachine", UID: owner, Controller: new(true)}},
	}}
}

func TestReleasedBerths(t *testing.T) {
	findQEMU := func(uuid string) ([]process.Process, error) {
		switch uuid {
		case "runs", "placed":
			return []process.Process{{PID: 7}}, nil
		case "starts":
			return []process.Process{{PID: 7}, {PID: 8}}, nil
		case "ends":
			return []process.Process{{PID: 9}}, nil
		case "unseen":
			return nil, errAway
		}
		return nil, nil
	}
	podOf := func(pid int) (types.UID, error) {
		switch pid {
		case 7:
			return "q", nil
		case 8:
			return "", nil
		}
		return "", errAway
	}
	but := func(change func(*corev1.Pod)) *corev1.Pod {
		pod := endingBerth("p", "gone")
		change(pod)
		return pod
	}
	for name, c := range map[string]struct {
		pod       *corev1.Pod
		had, want []types.UID
	}{
		"its VirtualMachine and its QEMU are gone":  {pod: endingBerth("p", "gone"), want: []types.UID{"p"}},
		"its VirtualMachine names no berth":         {pod: endingBerth("p", "known"), want: []types.UID{"p"}},
		"its VirtualMachine has another berth":      {pod: endingBerth("p", "placed"), want: []types.UID{"p"}}, // where its QEMU is
		"it is the VirtualMachine's berth":          {pod: endingBerth("q", "placed")},
		"its VirtualMachine cannot be read":         {pod: endingBerth("p", "unsure")},
		"its QEMU runs in it":                       {pod: endingBerth("q", "runs")},
		"its QEMU runs in another pod":              {pod: endingBerth("p", "runs"), want: []types.UID{"p"}},
		"one of its QEMUs is in no pod yet":         {pod: endingBerth("p", "starts")},
		"it cannot be seen where its QEMU is":       {pod: endingBerth("p", "ends")},
		"it cannot be seen whether its QEMU runs":   {pod: endingBerth("p", "unseen")},
		"the same, after it was proven gone":        {pod: endingBerth("p", "unseen"), had: []types.UID{"p"}, want: []types.UID{"p"}},
		"it is released already":                    {pod: but(func(p *corev1.Pod) { p.Finalizers = []string{"other"} }), had: []types.UID{"p"}},
		"it is not being deleted":                   {pod: but(func(p *corev1.Pod) { p.DeletionTimestamp = nil })},
		"it is no berth":                            {pod: but(func(p *corev1.Pod) { p.OwnerReferences = nil })},
		"another pod of which something was proven": {pod: endingBerth("p", "starts"), had: []types.UID{"q"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Reconciler{Options: Options{
				Client:         fake.NewClientBuilder().WithScheme(kube.Scheme()).WithObjects(c.pod).Build(),
				VirtualMachine: virtualMachines, CheckVolumes: attachable, FindQEMU: findQEMU, PodOf: podOf,
			}}
			if diff := cmp.Diff(c.want, r.releasedBerths(t.Context(), c.had)); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestReleasedBerthsOfALargeNode: the cache lists pods in any order, and the API server refuses a list that is too long.
func TestReleasedBerthsOfALargeNode(t *testing.T) {
	var pods corev1.PodList
	var all, proven []types.UID
	for i := range maxListed + 1 {
		uid := types.UID(fmt.Sprintf("p%03d", i))
		pods.Items = append(pods.Items, *endingBerth(uid, "gone"))
		if all = append(all, uid); i > 0 {
			proven = append(proven, uid)
		}
	}
	c := fake.NewClientBuilder().WithScheme(kube.Scheme()).WithInterceptorFuncs(interceptor.Funcs{
		List: func(_ context.Context, _ client.WithWatch, list client.ObjectList, _ ...client.ListOption) error {
			pods.DeepCopyInto(list.(*corev1.PodList))
			return nil
		},
	}).Build()
	r := &Reconciler{Options: Options{
		Client: c, VirtualMachine: virtualMachines, CheckVolumes: attachable, FindQEMU: func(string) ([]process.Process, error) { return nil, nil },
	}}
	if diff := cmp.Diff(all[:maxListed], r.releasedBerths(t.Context(), proven)); diff != "" {
		t.Errorf("one more than can be listed, -want +got:\n%s", diff)
	}
	pods.Items = pods.Items[:3]
	slices.Reverse(pods.Items)
	if diff := cmp.Diff(all[:3], r.releasedBerths(t.Context(), all[:3])); diff != "" {
		t.Errorf("in another order, -want +got:\n%s", diff)
	}
}

// TestObserve: what is read below libvirtd's root is read there, and not of the agent's own file system.
func TestObserve(t *testing.T) {
	root := t.TempDir()
	for path, text := range map[string]string{"etc/libvirt/qemu.conf": "conf", "sys/fs/selinux/enforce": "1"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, path)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, path), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	libvirt := &fakeLibvirt{root: root}
	r := newReconciler(t, fake.NewClientBuilder().WithScheme(kube.Scheme()).Build(), libvirt, &fakeStore{})
	seen, err := r.observe(t.Context())
	if err != nil || seen.host.Name != "n1" || seen.host.UID != "" || seen.status.KernelVersion == "" || seen.status.BootID == "" || seen.cpuinfo.text == "" {
		t.Errorf("a host that has no object yet is seen as %+v: %v", seen, err)
	}
	if seen.qemuConf != (file{text: "conf"}) || seen.selinux != (file{text: "1"}) {
		t.Errorf("below libvirtd's root are %+v and %+v", seen.qemuConf, seen.selinux)
	}
	libvirt.root = t.TempDir()
	if seen, err = r.observe(t.Context()); err != nil || seen.qemuConf != (file{}) || seen.selinux != (file{}) {
		t.Errorf("files that are absent are %+v and %+v: %v", seen.qemuConf, seen.selinux, err)
	}
	libvirt.err = errAway
	if seen, err = r.observe(t.Context()); err != nil || seen.qemuConf.err == nil || seen.selinux.err == nil {
		t.Errorf("files of an unknown root are %+v and %+v: %v", seen.qemuConf, seen.selinux, err)
	}
}

func newReconciler(t *testing.T, c client.Client, libvirt Libvirt, s Store) *Reconciler {
	return New(t.Context(), Options{
		Node: "n1", Version: "v1", Acceleration: v1alpha1.AccelerationEmulation, Client: c, Libvirt: libvirt, Store: s,
		VirtualMachine: virtualMachines, CheckVolumes: attachable, FindQEMU: process.Table{}.Find, Now: time.Now,
	})
}

// TestStoreThatIsAnother: the host knows its store by the ID that it was first told, and says so.
func TestStoreThatIsAnother(t *testing.T) {
	host := &v1alpha1.VirtualMachineHost{}
	host.Name, host.UID = "n1", "u"
	images := &fakeStore{id: "a"}
	look := func() snapshot {
		t.Helper()
		c := fake.NewClientBuilder().WithScheme(kube.Scheme()).WithObjects(host).WithStatusSubresource(host).Build()
		seen, err := newReconciler(t, c, &fakeLibvirt{root: t.TempDir()}, images).observe(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return seen
	}
	if seen := look(); seen.status.StoreID != "a" || images.wanted != "" || seen.storeErr != nil {
		t.Errorf("of a node that had none %q was asked for; the status is %+v, %v", images.wanted, seen.status, seen.storeErr)
	}
	host.Status.StoreID = "a"
	images.id, images.notThis = "b", errAway
	if seen := look(); seen.status.StoreID != "a" || images.wanted != "a" || !errors.Is(seen.storeErr, errAway) {
		t.Errorf("of a node that had another %q was asked for; the status is %+v, %v", images.wanted, seen.status, seen.storeErr)
	}
}
