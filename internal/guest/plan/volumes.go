package plan

import (
	"cmp"
	"fmt"
	"iter"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/condition"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/machine"
)

// volume is what is attached for one of the guest's disks, nil if nothing is.
func (h *Have) volume(disk string) *Volume {
	return find(h.Volumes, func(v Volume) bool { return v.Disk == disk })
}

// claims are the disks of claims, each with what is attached for it, nil if nothing is.
func claims(w Want, h Have) iter.Seq2[machine.Disk, *Volume] {
	return func(yield func(machine.Disk, *Volume) bool) {
		for _, d := range w.Machine.Disks {
			if d.Claim != nil && !yield(d, h.volume(d.Name)) {
				return
			}
		}
	}
}

// rests is for how long the worker of a volume that failed is left alone.
func (v *Volume) rests(now time.Time) time.Duration {
	if v.Err == nil {
		return 0
	}
	return max(0, v.Retry.Sub(now))
}

// attach goes on with the volumes of a guest that is about to start. It is done once there is a disk on each.
func attach(w Want, h Have, now time.Time) (next Next, done bool) {
	var absent, unmade []machine.Disk
	done = true
	for d, has := range claims(w, h) {
		if has != nil && has.Made && has.Claim == d.Claim.UID {
			continue
		}
		done = false
		switch {
		case d.Claim.UID == "" || d.Claim.Capacity == 0, h.Shim == nil:
			return Next{}, false // the operator tells of the claim, and kubelet mounts it: both wake us
		case has == nil || has.Claim != d.Claim.UID:
			absent, unmade = append(absent, d), append(unmade, withDigest(d, h))
		case has.Working:
			next.wakeIn(pullProgress)
		case has.rests(now) > 0: // Decide wakes for it
		default:
			unmade = append(unmade, withDigest(d, h))
		}
	}
	if len(absent) > 0 {
		next.Steps = append(next.Steps, AttachVolumes{absent})
	}
	if len(unmade) > 0 {
		next.Steps = append(next.Steps, MakeVolumes{unmade})
		next.wakeIn(pullProgress)
	}
	return next, done
}

// withDigest is a disk that is seeded from its image as it is on this node.
func withDigest(d machine.Disk, h Have) machine.Disk {
	d.Image.Digest = cmp.Or(h.Images[d.Name].Digest, d.Image.Digest)
	return d
}

// grown are the disks that QEMU is to be told of: their volumes have more room than when it opened them.
func grown(h Have) (list []Step) {
	for _, v := range h.Volumes {
		if v.Made && v.Target > v.Size {
			list = append(list, GrowDisk{Disk: v.Disk, Size: v.Target})
		}
	}
	return list
}

// outgrows: a disk is to be larger than when its size was decided. Its claim has more capacity, or the spec asks for more.
func outgrows(d machine.Disk, v *Volume) bool {
	return d.Claim.Capacity > v.Capacity || d.Size > v.Target && !d.Claim.Block
}

// outgrown are the disks that are to be larger, and of which no worker finds out how large they can be.
func outgrown(w Want, h Have, now time.Time) (list []machine.Disk) {
	for d, v := range claims(w, h) {
		if v != nil && v.Made && v.Claim == d.Claim.UID && outgrows(d, v) && !v.Working && v.rests(now) == 0 {
			list = append(list, d)
		}
	}
	return list
}

// volumesFailed is why claims do not have their disks, or not as large as they are to be; nil if nothing is in the way.
func volumesFailed(w Want, h Have) *metav1.Condition {
	var failed []string
	var reason v1alpha1.Reason
	for d, v := range claims(w, h) {
		if v != nil && v.Err != nil && (!v.Made || outgrows(d, v)) {
			failed, reason = append(failed, fmt.Sprintf("disk %s: %v", d.Name, v.Err)), fault.ReasonOf(v.Err)
		}
	}
	if len(failed) == 0 {
		return nil
	}
	return new(condition.New(v1alpha1.ConditionDisksReady, false, reason, strings.Join(failed, "; ")))
}

// volumesReady is what the claims' disks of a guest that is to start wait for, nil for nothing.
func volumesReady(w Want, h Have) *metav1.Condition {
	var waiting, seeding []string
	for d, v := range claims(w, h) {
		switch {
		case d.Claim.UID == "" || d.Claim.Capacity == 0:
			waiting = append(waiting, d.Name)
		case v == nil || v.Made:
		case v.Total > 0:
			seeding = append(seeding, fmt.Sprintf("%s: %d of %d MiB", d.Name, v.Done>>20, v.Total>>20))
		}
	}
	if len(seeding) > 0 {
		return new(condition.New(v1alpha1.ConditionDisksReady, false, v1alpha1.ReasonSeeding, strings.Join(seeding, "; ")))
	}
	if len(waiting) == 0 {
		return nil
	}
	message := "the capacity of these disks' claims is not known yet: " + strings.Join(waiting, ", ")
	return new(condition.New(v1alpha1.ConditionDisksReady, false, v1alpha1.ReasonClaimPending, message))
}

// volumeStatus is what a status tells of the disks on claims. What a guest has had stays in it wherever its volume is: it is
// never seeded again.
func volumeStatus(w Want, h Have) (list []v1alpha1.DiskStatus) {
	for d, v := range claims(w, h) {
		s := v1alpha1.DiskStatus{Name: d.Name}
		if had := find(w.VM.Status.Disks, func(had v1alpha1.DiskStatus) bool { return had.Name == d.Name }); had != nil && d.Claim.Used {
			s = ownedOf(*had)
			s.Progress = nil
		}
		switch {
		case v == nil || v.Claim != d.Claim.UID:
		case v.Made:
			s.Size, s.UsedClaimUID = resource.NewQuantity(v.Size, resource.BinarySI), v.Claim
			if v.Seed != "" {
				s.Seeded, s.Image, s.ImageDigest = true, d.Image.Reference, v.Seed
			}
		case v.Total > 0:
			s.Progress = &v1alpha1.DiskProgress{
				Doing: v1alpha1.DiskSeeding,
				Done:  resource.NewQuantity(v.Done, resource.BinarySI), Total: resource.NewQuantity(v.Total, resource.BinarySI),
			}
		}
		if s != (v1alpha1.DiskStatus{Name: d.Name}) {
			list = append(list, s)
		}
	}
	return list
}

// ownedOf is the agent's part of what a status tells of a disk: of its claim the operator does.
func ownedOf(s v1alpha1.DiskStatus) v1alpha1.DiskStatus {
	s.ClaimName, s.ClaimUID, s.Capacity, s.VolumeMode = "", "", nil, ""
	return s
}
