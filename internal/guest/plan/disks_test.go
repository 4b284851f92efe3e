package plan

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
)

func TestADiskThatExistsIsWhatTheSpecAsksFor(t *testing.T) {
	had := machine.Disk{Name: "root", Image: machine.Image{Reference: "a", Digest: "sha256:1"}, Size: 1 << 30}
	size := func(text string) *resource.Quantity { return new(resource.MustParse(text)) }
	for name, tt := range map[string]struct {
		want v1alpha1.Disk
		fits bool
	}{
		"the same":                     {v1alpha1.Disk{Name: "root", Image: "a", Size: size("1Gi")}, true},
		"its size in other words":      {v1alpha1.Disk{Name: "root", Image: "a", Size: size("1024Mi")}, true},
		"no size":                      {v1alpha1.Disk{Name: "root", Image: "a"}, true},
		"another disk":                 {v1alpha1.Disk{Name: "data", Image: "b"}, true},
		"another image":                {v1alpha1.Disk{Name: "root", Image: "b"}, false},
		"a larger size":                {v1alpha1.Disk{Name: "root", Image: "a", Size: size("2Gi")}, true},
		"a smaller one":                {v1alpha1.Disk{Name: "root", Image: "a", Size: size("1Mi")}, false},
		"one that is not kept, though": {v1alpha1.Disk{Name: "root", Image: "a", Ephemeral: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := resolved(t, Want{VM: vm(func(vm *v1alpha1.VirtualMachine) { vm.Spec.Disks = []v1alpha1.Disk{tt.want} }), Berth: fresh()})
			h := Have{
				Domain: DomainAbsent, Process: ProcessNone, Container: ContainerAlive, Shim: &Shim{},
				Disks: []machine.Disk{had}, Images: map[string]Image{tt.want.Name: {State: ImageReady}},
			}
			err := diskMismatch(w, h)
			if (err == nil) != tt.fits || err != nil && fault.ReasonOf(err) != v1alpha1.ReasonDiskMismatch {
				t.Errorf("%v, want it to fit: %t", err, tt.fits)
			}
			next, _ := Decide(w, h, Memory{}, now)
			if (len(next.Steps) > 0) != tt.fits {
				t.Errorf("steps are %v", next.Steps)
			}
			s, _ := Report(w, h, Memory{}, nil, now)
			if says := condition.Reason(s.Conditions, v1alpha1.ConditionDisksReady) == v1alpha1.ReasonDiskMismatch; says == tt.fits {
				t.Errorf("the status says %+v", s.Conditions)
			}
			h.Disks[0].Ephemeral = true
			if err := diskMismatch(w, h); err != nil {
				t.Errorf("one that is made anew at each start: %v", err)
			}
		})
	}
}
