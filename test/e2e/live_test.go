package e2e

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/env"
)

// anyDisk in a guest is what its serial number says, on any bus.
const anyDisk = `disk() { for d in /sys/block/[svh][drd]*; do s=$(cat $d/serial $d/device/serial 2>/dev/null; tail -c +5 $d/device/vpd_pg80 2>/dev/null); ` +
	`if [ "$s" = "$1" ]; then echo ${d##*/}; fi; done; }; `

// blank is an empty disk; more are other fields.
func blank(name, size, more string) string {
	return fmt.Sprintf("{name: %s, empty: {}, size: %s%s}", name, size, more)
}

// disks has the guest live have these disks, as YAML in braces.
func (l *lab) disks(disks ...string) {
	l.Helper()
	l.kubectl("", "patch", "vm", "live", "--type=merge", "-p", expand("spec: {disks: ["+strings.Join(disks, ", ")+"]}"))
}

// hasDisks waits until it sees these of the disks, and none of the others.
func (l *lab) hasDisks(all []string, want ...string) {
	l.Helper()
	last := ""
	defer func() { l.Logf("disks: %s", last) }()
	env.Eventually(l, fmt.Sprintf("the guest to have disks %v", want), func() bool {
		last = l.exec("live", nil, "sh", "-c", anyDisk+"for name in "+strings.Join(all, " ")+`; do [ -z "$(disk $name)" ] || echo $name; done`).out
		return slices.Equal(strings.Fields(last), want)
	})
}

// pending waits until its changes that wait have these paths.
func (l *lab) pending(paths ...string) {
	l.Helper()
	l.vm("live", fmt.Sprintf("to have %v pending", paths), func(vm *v1alpha1.VirtualMachine) bool {
		var has []string
		for _, p := range vm.Status.PendingChanges {
			has = append(has, p.Path)
		}
		return slices.Equal(has, paths)
	})
}

func diskStatus(vm *v1alpha1.VirtualMachine, name string) *v1alpha1.DiskStatus {
	for i := range vm.Status.Disks {
		if vm.Status.Disks[i].Name == name {
			return &vm.Status.Disks[i]
		}
	}
	return nil
}

// TestLiveDisks: disks come to a running guest, change and go; what it cannot take waits, and says so.
func TestLiveDisks(t *testing.T) {
	l := start(t)
	const cd, full = "{name: cd, type: CDROM, bus: SCSI}", "{name: cd, type: CDROM, bus: SCSI, image: $TINY}"
	base, kept, grown := blank("base", "64Mi", ", bus: SCSI"), blank("kept", "128Mi", ""), blank("kept", "192Mi", "")
	l.apply(guestWith("live", base, cd))
	began := l.vm("live", "to be Ready", isReady)
	qemu := fmt.Sprint(qemus(string(began.UID)))
	all := []string{"base", "kept", "tmp", "image", "scsi", "data"}
	l.hasDisks(all, "base")

	t.Log("four disks in and out")
	l.disks(base, cd, kept, blank("tmp", "64Mi", ", ephemeral: true"), "{name: image, image: $TINY}", blank("scsi", "64Mi", ", bus: SCSI"))
	l.hasDisks(all, "base", "kept", "tmp", "image", "scsi")
	l.pending()
	l.keep("live", "kept", "kept")
	l.disks(base, cd)
	l.hasDisks(all, "base")
	vm := l.vm("live", "to have detached disks", func(vm *v1alpha1.VirtualMachine) bool {
		d := diskStatus(vm, "kept")
		return d != nil && d.Detached && diskStatus(vm, "tmp") == nil && len(vm.Status.PendingChanges) == 0
	})
	if vm.Status.NodeName == "" {
		t.Error("it lost its node")
	}

	t.Log("one comes back, and grows")
	l.disks(base, cd, kept)
	l.hasDisks(all, "base", "kept")
	l.kept("live", "kept", "kept")
	l.disks(base, cd, grown)
	l.sees("live", "kept", 192)

	t.Log("limits")
	l.disks(base, cd, blank("kept", "192Mi", ", limits: {bytesPerSecond: 4Mi}"))
	env.Eventually(l, "a limit of 4 MiB/s to hold", func() bool { return l.rate("kept") < 4.4 })
	l.disks(base, cd, grown)
	env.Eventually(l, "no limit to hold", func() bool { return l.rate("kept") > 4.4 })

	t.Log("a medium comes and goes")
	l.disks(base, full, grown)
	media := func(is bool) {
		t.Helper()
		env.Eventually(l, fmt.Sprintf("the drive to be full: %t", is), func() bool {
			return (l.exec("live", nil, "sh", "-c", "dd if=/dev/sr0 of=/dev/null bs=2048 count=1").code == 0) == is
		})
	}
	media(true)
	if d := diskStatus(l.vm("live", "to tell of the medium", func(vm *v1alpha1.VirtualMachine) bool { return diskStatus(vm, "cd") != nil }), "cd"); d.ImageDigest == "" {
		t.Errorf("the medium has no digest: %+v", d)
	}
	l.disks(base, cd, grown)
	media(false)
	l.disks(base, full, grown)
	media(true)
	l.sh("live", "sleep 1000 </dev/sr0 >/dev/null 2>&1 &")
	l.disks(base, cd, grown)
	l.pending("disks[cd].image")
	l.event("live", v1alpha1.ReasonMediumForced)
	l.pending()

	t.Log("what waits for a restart")
	l.apply(claimOf("data", "Block", "ReadWriteOnce", "100Mi"))
	l.disks(base, cd, blank("kept", "192Mi", ", cache: Writeback"), claimed("data", ""))
	l.pending("disks[data]", "disks[kept].cache")
	l.disks(base, cd, grown)
	l.pending()

	t.Log("data that nobody wants goes")
	l.patch("live", `{"removeDisks":["image"]}`)
	l.vm("live", "to be rid of a disk", func(vm *v1alpha1.VirtualMachine) bool {
		return diskStatus(vm, "image") == nil && diskStatus(vm, "scsi") != nil
	})

	if now := fmt.Sprint(qemus(string(began.UID))); now != qemu {
		t.Errorf("QEMU was %s and is %s", qemu, now)
	}

	t.Log("a restart finds it all")
	killQEMU(l, began)
	l.vm("live", "to be restarted", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && vm.Status.LastExit != nil })
	l.kept("live", "kept", "kept")
	l.hasDisks(all, "base", "kept")
	l.sees("live", "kept", 192)
}

// rate is how fast it reads a disk past its cache, in MiB/s, by its own clock.
func (l *lab) rate(name string) float64 {
	l.Helper()
	out := l.exec("live", nil, "sh", "-ec", anyDisk+fmt.Sprintf(
		"echo 3 >/proc/sys/vm/drop_caches; read a b </proc/uptime; dd if=/dev/$(disk %s) of=/dev/null bs=1M count=16 2>/dev/null; read c d </proc/uptime; echo $a $c", name)).out
	var from, to float64
	if n, err := fmt.Sscan(out, &from, &to); n != 2 || err != nil || to <= from {
		return 0
	}
	rate, _ := strconv.ParseFloat(fmt.Sprintf("%.2f", 16/(to-from)), 64)
	l.Logf("%s is read at %.2f MiB/s", name, rate)
	return rate
}
