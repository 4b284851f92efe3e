package host

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/host/process"
	"github.com/berth-dev/berth/internal/host/store"
)

func TestStrayDisks(t *testing.T) {
	const strange, unsure = "shop/vm strange", "shop/vm unsure"
	for name, c := range map[string]struct {
		store     *fakeStore
		had, want []string
		goes      int // of them may go
	}{
		"a guest whose VirtualMachine exists":         {store: &fakeStore{guests: []store.Guest{guest("known")}}, had: []string{"shop/vm known"}},
		"one whose VirtualMachine is gone":            {store: &fakeStore{guests: []store.Guest{guest("strange"), guest("known")}}, want: []string{strange}, goes: 1},
		"one of which the API server says nothing":    {store: &fakeStore{guests: []store.Guest{guest("unsure")}}},
		"the same, of which was said that it is gone": {store: &fakeStore{guests: []store.Guest{guest("unsure")}}, had: []string{unsure}, want: []string{unsure}},
		"one of which cannot be noted since when":     {store: &fakeStore{guests: []store.Guest{guest("strange")}, markErr: errAway}, want: []string{strange}},
		"a store that cannot be read":                 {store: &fakeStore{err: errAway}, had: []string{strange}, want: []string{strange}},
	} {
		t.Run(name, func(t *testing.T) {
			r := &Reconciler{Options: Options{Store: c.store, VirtualMachine: virtualMachines}}
			s := &v1alpha1.VirtualMachineHostStatus{StrayDisks: c.had}
			may := r.observeStrays(t.Context(), s)
			if diff := cmp.Diff(c.want, s.StrayDisks); diff != "" || len(may) != c.goes {
				t.Errorf("%d may go, want %d; -want +got:\n%s", len(may), c.goes, diff)
			}
			if size := int64(len(c.want)) << 20; c.store.err == nil && (r.StrayBytes() != size || size > 0 != (s.StrayDiskSize != nil) || size > 0 && s.StrayDiskSize.Cmp(*resource.NewQuantity(size, resource.BinarySI)) != 0) {
				t.Errorf("they take %d bytes, %s in the status, want %d", r.StrayBytes(), s.StrayDiskSize, size)
			}
		})
	}
}

func TestAKnownGuestIsNoStrayAnyMore(t *testing.T) {
	s := &fakeStore{guests: []store.Guest{guest("known")}, strays: map[string]time.Time{"known": {}}}
	r := &Reconciler{Options: Options{Store: s, VirtualMachine: virtualMachines}}
	if may := r.observeStrays(t.Context(), &v1alpha1.VirtualMachineHostStatus{}); len(may) > 0 || len(s.strays) > 0 {
		t.Errorf("%v may go, %v is noted", may, s.strays)
	}
}

func TestRemoveStrays(t *testing.T) {
	now := time.Unix(1e9, 0)
	const month = 30 * 24 * time.Hour
	for name, c := range map[string]struct {
		keep, age time.Duration
		stray     store.Guest
		libvirt   *fakeLibvirt
		qemu      error
		qemus     []process.Process
		goes      bool
	}{
		"it is old enough":             {keep: month, age: month, stray: guest("a"), goes: true},
		"it is not":                    {keep: month, age: month - time.Second, stray: guest("a")},
		"they are kept for ever":       {keep: 0, age: 100 * month, stray: guest("a")},
		"its record cannot be read":    {keep: month, age: month, stray: store.Guest{Identity: store.Identity{UID: "a"}}},
		"its QEMU runs":                {keep: month, age: month, stray: guest("a"), qemus: []process.Process{{PID: 7}}},
		"nobody can tell whether":      {keep: month, age: month, stray: guest("a"), qemu: errAway},
		"libvirt has its domain":       {keep: month, age: month, stray: guest("a"), libvirt: &fakeLibvirt{xml: map[string]string{"a": "<domain/>"}}},
		"libvirt does not say whether": {keep: month, age: month, stray: guest("a"), libvirt: &fakeLibvirt{err: errAway}},
	} {
		s, libvirt := &fakeStore{}, c.libvirt
		if libvirt == nil {
			libvirt = &fakeLibvirt{}
		}
		r := New(t.Context(), Options{
			Store: s, Libvirt: libvirt, KeepStrayDisks: c.keep, Now: func() time.Time { return now },
			CheckVolumes: attachable, FindQEMU: func(string) ([]process.Process, error) { return c.qemus, c.qemu },
		})
		if err := r.removeStrays(t.Context(), []stray{{Guest: c.stray, since: now.Add(-c.age)}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if goes := len(s.removed) > 0; goes != c.goes {
			t.Errorf("%s: it goes: %t, want %t", name, goes, c.goes)
		}
	}
}
