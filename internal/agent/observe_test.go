package agent

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

// What ends a guest on libvirt's word has to be seen again, and what could not be seen was not.
func TestALookThatFailedEndsADoubt(t *testing.T) {
	const uid = types.UID("30313233-3435-3637-3839-616263646566")
	now := time.Unix(1e9, 0)
	a := &Agent{now: func() time.Time { return now }}
	a.libvirt, a.hints = libvirtd.New(libvirtd.Options{}, libvirtd.Watcher{}), newHints()
	a.hints.lasts(uid, doubted, true, now)
	now = now.Add(time.Second)
	if have := a.observe(t.Context(), &guest{Want: plan.Want{}, uid: uid}); have.Unknown == nil {
		t.Fatal("libvirtd was never connected, and answered")
	}
	now = now.Add(time.Second)
	if doubt := a.hints.lasts(uid, doubted, true, now); doubt != 0 {
		t.Errorf("a guest is doubted for %v after the first look that could doubt it", doubt)
	}
}
