package host

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/host/store"
)

// stray are the disks of a guest that the API server does not know, say after it was restored from a backup.
type stray struct {
	store.Guest
	// since is when that was first seen, by a clock with which the API server was reached.
	since time.Time
}

func (s stray) String() string { return fmt.Sprintf("%s/%s %s", s.Namespace, s.Name, s.UID) }

// observeStrays finds the stray disks, and tells of them in the status. Those of which the API server says nothing now stay
// reported, and are none that may go.
func (r *Reconciler) observeStrays(ctx context.Context, s *v1alpha1.VirtualMachineHostStatus) (strays []stray) {
	guests, err := r.Store.List()
	if err != nil {
		return nil
	}
	var names []string
	var size int64
	for _, g := range guests {
		it := stray{Guest: g}
		vm, err := r.VirtualMachine(ctx, types.UID(g.UID))
		switch {
		case err == nil && vm != nil:
			if err := r.Store.UnmarkStray(g.UID); err != nil {
				ctrl.LoggerFrom(ctx).Error(err, "Unmarking stray disks")
			}
			continue
		case err != nil && !slices.Contains(s.StrayDisks, it.String()):
			continue
		case err == nil:
			if it.since, err = r.Store.MarkStray(g.UID); err == nil {
				strays = append(strays, it)
			}
		}
		names = append(names, it.String())
		n, err := r.Store.Allocated(g.UID)
		if err != nil {
			ctrl.LoggerFrom(ctx).Error(err, "Measuring stray disks")
		}
		size += n
	}
	r.strayBytes.Store(size)
	s.StrayDisks, s.StrayDiskSize = bounded(names, maxListed), nil
	if len(names) > 0 {
		s.StrayDiskSize = resource.NewQuantity(size, resource.BinarySI)
	}
	return strays
}

// StrayBytes is the space that stray disks take, in bytes.
func (r *Reconciler) StrayBytes() int64 { return r.strayBytes.Load() }

// removeStrays removes the stray disks that are older than the administrator wants to keep them.
func (r *Reconciler) removeStrays(ctx context.Context, strays []stray) error {
	var errs []error
	for _, s := range strays {
		if r.KeepStrayDisks == 0 || r.Now().Sub(s.since) < r.KeepStrayDisks || !r.provenGone(ctx, s) {
			continue
		}
		if err := r.Store.Remove(s.UID); err != nil {
			errs = append(errs, err)
			continue
		}
		ctrl.LoggerFrom(ctx).Info("Removed stray disks", "vm", s.Namespace+"/"+s.Name, "uid", s.UID, "since", s.since)
		r.Wake() // what is reported has changed
	}
	return errors.Join(errs...)
}

// provenGone: no QEMU can have the disks open. Without a name in their record nobody could be asked whose they are.
func (r *Reconciler) provenGone(ctx context.Context, s stray) bool {
	if s.Name == "" || s.Namespace == "" {
		return false
	}
	qemus, err := r.FindQEMU(s.UID)
	if err != nil || len(qemus) > 0 {
		return false
	}
	found, err := r.Libvirt.Domain(ctx, s.UID)
	return err == nil && !found.Exists
}
