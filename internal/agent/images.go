package agent

import (
	"context"
	"time"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/agent/pulls"
	"github.com/berth-dev/berth/internal/guest/plan"
	"github.com/berth-dev/berth/internal/host/image"
	"github.com/berth-dev/berth/internal/host/store"
)

// newPuller joins the registry and the store.
func (a *Agent) newPuller(ctx context.Context, registry *image.Client, images *store.Store) *pulls.Puller {
	return pulls.New(ctx, pulls.Options{
		Store: images,
		Import: func(ctx context.Context, c store.Content, source string, fetch store.Fetch) pulls.Import {
			return images.Import(ctx, c, source, fetch)
		},
		Resolve: func(ctx context.Context, ref image.Reference, keys image.Keychain) (pulls.Resolved, error) {
			found, err := registry.Resolve(ctx, ref, keys)
			if err != nil {
				return pulls.Resolved{}, err
			}
			return pulls.Resolved{Digest: found.Digest, Proof: found.Proof, Layers: found}, nil
		},
		Collect: func(now time.Time) ([]store.Image, error) { return images.Collect(a.Images, now) },
		Wake:    a.enqueue, Removed: func() { a.host.Wake() }, Metrics: a.meters.pulls, Now: a.now,
	})
}

// requiredImages lists what the guest needs. The digest that is recorded in its status
// stays its own: a tag that moves never changes a guest.
func requiredImages(vm *v1alpha1.VirtualMachine) []pulls.Image {
	var list []pulls.Image
	for _, d := range vm.Spec.Disks {
		i := pulls.Image{Name: d.Name, Reference: d.Image}
		for _, had := range vm.Status.Disks {
			if had.Name == d.Name && had.Image == d.Image {
				i.Digest = had.ImageDigest
			}
		}
		list = append(list, i)
	}
	if k := vm.Spec.Kernel; k != nil {
		list = append(list, pulls.Image{Name: plan.Kernel, Reference: k.Image, Kernel: k.KernelPath, Initrd: k.InitrdPath})
	}
	return list
}
