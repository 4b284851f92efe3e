package host

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berth-dev/berth/internal/host/libvirtd"
)

func TestFacts(t *testing.T) { synctest.Test(t, testFacts) }

func testFacts(t *testing.T) {
	now := time.Unix(1e9, 0)
	libvirt := &fakeLibvirt{answers: make(chan answer)}
	r := New(t.Context(), Options{Node: "n1", Libvirt: libvirt, Now: func() time.Time { return now }})
	look := func(what string, wantKnown, wantErr bool) {
		t.Helper()
		if _, known, err := r.Facts(); known != wantKnown || known && (err != nil) != wantErr {
			t.Errorf("%s: known %t, error %v", what, known, err)
		}
	}
	asks := func(what string, want int32) {
		t.Helper()
		synctest.Wait()
		if got := libvirt.asks.Swap(0); got != want {
			t.Fatalf("%s: libvirt is asked %d times, want %d", what, got, want)
		}
	}
	answered := func(what string, facts libvirtd.HostFacts, err error, wakes bool) {
		t.Helper()
		asks(what, 1)
		libvirt.answers <- answer{facts, err}
		synctest.Wait()
		select {
		case <-r.wakes:
			if !wakes {
				t.Errorf("%s: the host is looked at for nothing", what)
			}
		default:
			if wakes {
				t.Errorf("%s: nobody looks at the host", what)
			}
		}
	}
	sound := libvirtd.HostFacts{QEMUVersion: "7.2.0"}
	refused := errors.New("refused")

	look("an agent that just began", false, false)
	now = now.Add(reconnectGrace)
	look("libvirtd is away for good", true, true)
	asks("libvirtd is away", 0)
	r.LibvirtConnectivity(nil)
	look("before the first answer", false, false)
	look("before the first answer, again", false, false)
	answered("the first answer", sound, nil, true)
	look("an answer", true, false)
	asks("an answer that is new", 0)

	now = now.Add(factsTTL)
	look("an old answer, while libvirt is asked", true, false)
	answered("the same answer", sound, nil, false)
	for what, facts := range map[string]libvirtd.HostFacts{
		"another QEMU":                         {QEMUVersion: "8.0.0"},
		"KVM is gone":                          {QEMUVersion: "7.2.0", KVMUnavailable: refused},
		"a directory that QEMU cannot pass by": {QEMUVersion: "7.2.0", StateDirInaccessible: refused},
	} {
		now = now.Add(factsTTL)
		look(what, true, false)
		answered(what, facts, nil, true)
		now = now.Add(factsTTL)
		look(what, true, false)
		answered(what+", and back", sound, nil, true)
	}

	r.LibvirtConnectivity(errors.New("gone"))
	look("libvirtd restarts", false, false)
	r.LibvirtConnectivity(nil)
	look("what is known after a restart", true, false)
	answered("a failure", libvirtd.HostFacts{}, refused, true)
	look("a failure", true, true)
	answered("the same failure", libvirtd.HostFacts{}, refused, false)
	r.LibvirtConnectivity(nil)
	look("a failure of before a restart", false, false)
	answered("an answer at last", sound, nil, true)
}
