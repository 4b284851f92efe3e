package virtualmachine

import (
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
)

func TestProvides(t *testing.T) {
	facts := libvirtd.HostFacts{QEMUVersion: "7.2.0", MachineTypes: []string{"pc-q35-7.1", "pc-q35-7.2", "q35"}, Q35: "pc-q35-7.2"}
	for name, tc := range map[string]struct {
		hardware domain.Hardware
		why      string
	}{
		"what a new VM gets":             {domain.Hardware{Layout: domain.NewestLayout, Machine: "pc-q35-7.2"}, ""},
		"what a VM of an older QEMU has": {domain.Hardware{Layout: domain.NewestLayout, Machine: "pc-q35-7.1"}, ""},
		"a layout of a newer Berth":      {domain.Hardware{Layout: domain.NewestLayout + 1, Machine: "pc-q35-7.2"}, "layout 3, which Berth on node n1 does not have"},
		"a layout of an older Berth":     {domain.Hardware{Layout: 1, Machine: "pc-q35-7.2"}, "layout 1, which Berth on node n1 does not have"},
		"a machine type of a newer QEMU": {domain.Hardware{Layout: domain.NewestLayout, Machine: "pc-q35-9.0"}, `"pc-q35-9.0", which QEMU 7.2.0 on node n1 does not have`},
	} {
		t.Run(name, func(t *testing.T) {
			err := provides("n1", facts, tc.hardware)
			if tc.why == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if fault.ReasonOf(err) != v1alpha1.ReasonHardwareUnknown || fault.ClassOf(err) != fault.User || !strings.Contains(err.Error(), tc.why) {
				t.Errorf("%v, want %s", err, tc.why)
			}
		})
	}
}
