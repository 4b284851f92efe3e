package agent

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/store"
)

func TestADiskThatExistsIsWhatTheSpecAsksFor(t *testing.T) {
	had := store.GuestDisk{Name: "root", Record: store.Record{Image: "a"}, VirtualSize: 1 << 30}
	size := func(text string) *resource.Quantity { return new(resource.MustParse(text)) }
	for name, tt := range map[string]struct {
		want v1alpha1.Disk
		fits bool
	}{
		"the same":                     {v1alpha1.Disk{Name: "root", Image: "a", Size: size("1Gi")}, true},
		"its size in other words":      {v1alpha1.Disk{Name: "root", Image: "a", Size: size("1024Mi")}, true},
		"no size":                      {v1alpha1.Disk{Name: "root", Image: "a"}, true},
		"another image":                {v1alpha1.Disk{Name: "root", Image: "b"}, false},
		"another size":                 {v1alpha1.Disk{Name: "root", Image: "a", Size: size("2Gi")}, false},
		"one that is not kept, though": {v1alpha1.Disk{Name: "root", Image: "a", Ephemeral: true}, false},
	} {
		t.Run(name, func(t *testing.T) {
			err := fits(tt.want, had)
			if (err == nil) != tt.fits || err != nil && fault.ReasonOf(err) != v1alpha1.ReasonDiskMismatch {
				t.Errorf("%v, want it to fit: %t", err, tt.fits)
			}
		})
	}
}
