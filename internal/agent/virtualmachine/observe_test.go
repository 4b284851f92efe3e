package virtualmachine

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/berth/shimproto"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/plan"
)

// A guest may be newer than its berth, by a restart in place.
func TestPendingIsWhatTheGuestWasNotStartedWith(t *testing.T) {
	spec := func(commandLine string) v1alpha1.VirtualMachineSpec {
		return v1alpha1.VirtualMachineSpec{Kernel: &v1alpha1.Kernel{Image: "k", CommandLine: commandLine}}
	}
	record := func(commandLine string) string {
		s := spec(commandLine)
		text, err := berth.Record(&s)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	ours := func(record string) domain.Facts { return domain.Facts{Identity: &domain.Identity{Record: record}} }
	for _, tt := range []struct {
		name  string
		facts domain.Facts
		want  string // what it was started with, if that is not what the spec says, b
	}{
		{"started with the berth's spec", ours(record("a")), "a"},
		{"restarted in place since", ours(record("b")), ""},
		{"no domain", domain.Facts{}, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := &target{Want: plan.Want{VM: &v1alpha1.VirtualMachine{Spec: spec("b")}}}
			changes, err := g.pending(&tt.facts)
			if err != nil {
				t.Fatal(err)
			}
			var want []v1alpha1.PendingChange
			if tt.want != "" {
				want = []v1alpha1.PendingChange{{Path: "kernel.commandLine", From: tt.want, To: "b", Effect: v1alpha1.EffectRestart}}
			}
			if diff := cmp.Diff(want, changes); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// A container gets one guest: nothing is started for a shim that broke the protocol, which may have had it.
func TestWhichShimMayHaveHadItsGuest(t *testing.T) {
	for _, tt := range []struct {
		name    string
		session Session
		err     error
		want    bool
	}{
		{"one that has not spoken yet", &fakeSession{}, nil, true},
		{"one that broke the protocol", nil, shimproto.ErrBroken, true},
		{"one that has made no socket yet", nil, shimproto.ErrAbsent, false},
		{"no container", nil, nil, false},
	} {
		if got := mayHaveHadGuest(tt.session, tt.err); got != tt.want {
			t.Errorf("%s: %t", tt.name, got)
		}
	}
}
