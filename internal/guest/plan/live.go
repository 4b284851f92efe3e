package plan

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/berth"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/guest/machine"
)

const (
	// letGo is within what time most guests let go of a disk: before that it is nothing to tell.
	letGo = 2 * time.Second
	// unplugAgain is when a guest that has not is asked again: it may not have driven its bus at the first time.
	unplugAgain = 30 * time.Second
	// holdsMedium is for how long a guest may hold what is in a CD-ROM, before that is taken from it.
	holdsMedium = 10 * time.Second
)

// liveChange is what a running guest has otherwise than the spec, and can take while it runs.
type liveChange struct {
	disk, field string
	// steps make it so; without any, it waits.
	steps []Step
	// wake is when to look at it again, 0 for no time.
	wake time.Duration
	// why is what it waits for, "" for nothing that is worth telling.
	why string
}

// path is where the change is in the spec.
func (c liveChange) path() string { return "disks[" + c.disk + "]" + c.field }

// live is a disk that the running guest has, nil if it has none of that name.
func (h *Have) live(disk string) *domain.LiveDisk {
	return find(h.Facts.Disks, func(d domain.LiveDisk) bool { return d.Name == disk })
}

// liveChanges are what of the disks the running guest is to have otherwise. What is not among them it takes at a restart.
func liveChanges(w Want, h Have, m Memory, now time.Time) (list []liveChange) {
	if w.VM == nil || h.Unknown != nil || h.StartUnknown != nil || h.Facts.Identity == nil || h.Shim == nil || !h.Shim.Attached {
		return nil
	}
	for _, d := range w.Machine.Disks {
		has := h.live(d.Name)
		switch {
		case d.Claim != nil && has == nil: // a pod gets no other volume while it runs
		case has == nil:
			list = append(list, plug(w, h, d, now)...)
		case d.CDROM:
			list = append(list, medium(w, h, m, d, has, now)...)
		}
		if has != nil && has.Limits != d.Limits && !d.CDROM {
			list = append(list, liveChange{disk: d.Name, field: ".limits", steps: []Step{TuneDisk{*has, d.Limits}}})
		}
	}
	for _, s := range growth(w, h) {
		if grow := s.(GrowDisk); h.live(grow.Disk) != nil { //nolint:forcetypeassert // growth has no others
			list = append(list, liveChange{disk: grow.Disk, field: ".size", steps: []Step{grow}})
		}
	}
	for i := range h.Facts.Disks {
		if has := &h.Facts.Disks[i]; !w.has(has.Name) && h.volume(has.Name) == nil && h.Facts.CanUnplug(*has) {
			list = append(list, unplug(m, has, now))
		}
	}
	return append(list, forgotten(w, h)...)
}

// plug gives the guest a disk, once it is made; nothing if it has no place for it.
func plug(w Want, h Have, d machine.Disk, now time.Time) []liveChange {
	at, room := h.Facts.Spot(d.Bus)
	has := h.disk(d.Name)
	if !room || d.IOThread || has != nil && !fits(d, has) {
		return nil
	}
	record, err := berth.RecordWithDisk(h.Facts.Identity.Record, d.Name, w.VM.Spec.Disks)
	if err != nil { // it is another version's, and told as a whole
		return nil
	}
	if ready, waits := imageReady(w, h, d, now); !ready {
		waits.disk = d.Name
		return []liveChange{waits}
	}
	// The record comes first: whoever finds it without the disk begins again with what the spec has by then.
	return []liveChange{{disk: d.Name, steps: append(makeDisk(d, h), SetRecord{record}, PlugDisk{d, at})}}
}

// imageReady: the image of a disk is on the node, or the disk needs none. If not, the change says what that waits for.
func imageReady(w Want, h Have, d machine.Disk, now time.Time) (bool, liveChange) {
	has, needed := h.Images[d.Name]
	switch {
	case !needed || has.State == ImageReady:
		return true, liveChange{}
	case has.State == ImageMissing, has.State == ImageFailed && !now.Before(has.Retry):
		pull := PullImages{[]machine.Image{d.Image}, w.Machine.PullSecrets}
		return false, liveChange{steps: []Step{pull}, wake: letGo}
	case has.State == ImageFailed:
		return false, liveChange{why: "its image cannot be pulled", wake: has.Retry.Sub(now)}
	default:
		return false, liveChange{why: "its image is being pulled", wake: pullProgress}
	}
}

// medium puts another image into a CD-ROM, or takes out the one that is in it.
func medium(w Want, h Have, m Memory, d machine.Disk, drive *domain.LiveDisk, now time.Time) []liveChange {
	c := liveChange{disk: d.Name, field: ".image"}
	has := cmp.Or(h.disk(d.Name), &machine.Disk{})
	want := withDigest(d, h).Image
	lost := want.Reference != "" && has.Path == "" // what it was is not in the cache any more
	if lost || has.Image.Reference != want.Reference || want.Digest != "" && has.Image.Digest != want.Digest {
		if ready, waits := imageReady(w, h, d, now); !ready {
			waits.disk, waits.field = c.disk, c.field
			return []liveChange{waits}
		}
		c.steps = []Step{MakeDisk{Disk: withDigest(d, h), Anew: true}}
	} else if has.Path == drive.Path {
		return nil
	}
	asked, held := m.asked[d.Name]
	if left := holdsMedium - age(asked, now); held && left > 0 && c.steps == nil {
		c.why, c.wake = "the guest holds what is in the drive", left
		return []liveChange{c}
	}
	c.steps = append(c.steps, ChangeMedium{Disk: *drive, Force: held})
	return []liveChange{c}
}

// unplug takes a disk from the guest, which has to let go of it.
func unplug(m Memory, has *domain.LiveDisk, now time.Time) liveChange {
	c := liveChange{disk: has.Name}
	at, asked := m.asked[has.Name]
	since := age(at, now)
	switch {
	case !asked, since >= unplugAgain:
		c.steps, c.wake = []Step{UnplugDisk{*has}}, letGo
	case since < letGo:
		c.wake = letGo - since
	default:
		c.wake = unplugAgain - since
	}
	if asked && since >= letGo {
		c.why = "the guest has not let go of it"
	}
	return c
}

// forgotten takes disks out of the record that the guest does not have any more.
func forgotten(w Want, h Have) (list []liveChange) {
	for _, p := range h.Pending {
		name, is := strings.CutPrefix(strings.TrimSuffix(p.Path, "]"), "disks[")
		if !is || p.Path != (liveChange{disk: name}).path() || w.has(name) || h.live(name) != nil {
			continue
		}
		if record, err := berth.RecordWithDisk(h.Facts.Identity.Record, name, w.VM.Spec.Disks); err == nil {
			return []liveChange{{disk: name, steps: []Step{SetRecord{record}}}} // the next look begins from this record
		}
	}
	return nil
}

// addLive adds what live changes do and wait for. Of the disks only one is plugged at a time: its place is taken then.
func (n *Next) addLive(changes []liveChange) {
	recorded := false
	for _, c := range changes {
		records := slices.ContainsFunc(c.steps, func(s Step) bool { _, is := s.(SetRecord); return is })
		if recorded && records {
			n.wakeIn(time.Millisecond)
			continue
		}
		recorded = recorded || records
		n.Steps = append(n.Steps, c.steps...)
		n.wakeIn(c.wake)
	}
}

// asked is when the guest was last asked for disks that it still has.
func asked(w Want, h Have, m Memory, steps []Step, now time.Time) map[string]time.Time {
	if h.Unknown != nil || h.StartUnknown != nil {
		return m.asked
	}
	outstanding := map[string]bool{}
	for _, c := range liveChanges(w, h, m, now) {
		outstanding[c.disk] = true
	}
	list := map[string]time.Time{}
	maps.Copy(list, m.asked)
	maps.DeleteFunc(list, func(disk string, at time.Time) bool {
		return !outstanding[disk] || h.live(disk) == nil || at.After(now)
	})
	for _, s := range steps {
		switch s := s.(type) { //nolint:gochecksumtype // the others ask for nothing
		case UnplugDisk:
			list[s.Disk.Name] = now
		case ChangeMedium:
			list[s.Disk.Name] = now
		}
	}
	return list
}
