package volume_test

import (
	"testing"

	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/volume"
)

// TestContract tests what holds of the in-memory volumes as well.
func TestContract(t *testing.T) {
	hosttest.TestVolumes(t, func(t *testing.T) hosttest.VolumesSetup {
		r := volume.NewRig(t)
		v := r.Volumes()
		return hosttest.VolumesSetup{Attachments: v, Workers: v, Claim: r.Claim, Berth: r.Berth, Use: r.Use}
	})
}
