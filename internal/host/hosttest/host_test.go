package hosttest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/berth-dev/berth/internal/host/console"
	"github.com/berth-dev/berth/internal/host/hosttest"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/runtime"
	"github.com/berth-dev/berth/internal/host/store"
	"github.com/berth-dev/berth/internal/host/volume"
)

// xml describes a guest with a console and a tap.
func xml(h *hosttest.Host, id, name string) string {
	return fmt.Sprintf(`<domain type="kvm"><name>%s</name><uuid>%s</uuid><os><type>hvm</type></os>
		<devices><interface type="ethernet"><target dev="bt%.8s"/></interface><serial type="unix"><source path="%s"/></serial></devices>
		<seclabel><label>+1879048192:+108</label></seclabel></domain>`, name, id, id, h.Consoles.Path(id, console.Serial))
}

// disked is xml with a disk.
func disked(h *hosttest.Host, id, name string) string {
	i := h.AddImage(store.Content{Digest: "sha256:" + strings.Repeat("6", 64)}, 1)
	disk := fmt.Sprintf(`<disk type="file" device="disk"><source file="%s"/><target dev="vda" bus="virtio"/><alias name="ua-root"/></disk>`, i.DiskPath())
	return strings.Replace(xml(h, id, name), "<devices>", "<devices>"+disk, 1)
}

// backup describes the copying of a disk.
func backup(target, file string) string {
	return fmt.Sprintf(`<domainbackup><disks><disk name="%s"><driver type="qcow2"/><target file="%s"/></disk></disks></domainbackup>`, target, file)
}

func TestLibvirt(t *testing.T) {
	h := hosttest.New()
	h.CopiesIn(t.TempDir())
	hosttest.TestLibvirt(t, hosttest.LibvirtSetup{
		Domains: h.Libvirt, Power: h.Libvirt, Buttons: h.Libvirt, Resizer: h.Libvirt, Plugger: h.Libvirt, Annotator: h.Libvirt, Backups: h.Libvirt,
		Backup: func(t *testing.T, id string, there bool) string {
			user, err := h.Store.EnsureGuest(store.Identity{UID: id})
			if err != nil {
				t.Fatal(err)
			}
			file := "/none.part"
			if there {
				_ = h.Store.EndCommit(id, func() error { return nil })
				if file, err = h.Store.CreateCommit(id, 1<<20, 1, user); err != nil {
					t.Fatal(err)
				}
			}
			return backup("vda", file)
		},
		Complete: h.CompleteBackup,
		Disk: func(*testing.T) string {
			i := h.AddImage(store.Content{Digest: "sha256:" + strings.Repeat("5", 64)}, 1)
			return fmt.Sprintf(`<disk type="file" device="disk"><source file="%s"/><target dev="vdp" bus="virtio"/><alias name="ua-data"/></disk>`, i.DiskPath())
		},
		XML: func(_ *testing.T, id, name string) string { return disked(h, id, name) },
		End: func(t *testing.T, cause libvirtd.Cause) (id, name string) {
			id, name = uuid.NewString(), "end_"+uuid.NewString()
			running(t, h, id, name)
			q, err := h.Processes.Find(id)
			if err != nil || len(q) != 1 {
				t.Fatalf("%v, %v", q, err)
			}
			ended := true
			switch cause { //nolint:exhaustive // the others are nobody's to bring about here
			case libvirtd.CausePoweredOff:
				ended = h.PowerOff(id)
			case libvirtd.CausePanicked:
				ended = h.Panic(id)
			case libvirtd.CauseFailed:
				ended = h.KillQEMU(id) && h.NoticeExit(id)
			case libvirtd.CauseSignalled:
				err = h.Processes.Terminate(q[0], 0)
				ended = h.NoticeExit(id)
			}
			if !ended || err != nil {
				t.Fatalf("it did not end, %v", err)
			}
			return id, name
		},
		Stop: func(*testing.T) { h.SetLibvirtDown(true) },
	})
}

// running starts a guest.
func running(t *testing.T, h *hosttest.Host, id, name string) {
	t.Helper()
	if err := h.Libvirt.CreatePaused(t.Context(), xml(h, id, name)); err != nil {
		t.Fatal(err)
	}
	if err := h.Libvirt.Resume(t.Context(), id); err != nil {
		t.Fatal(err)
	}
}

func TestStore(t *testing.T) {
	hosttest.TestStore(t, func(t *testing.T) hosttest.StoreSetup {
		h := hosttest.New()
		h.CopiesIn(t.TempDir())
		return hosttest.StoreSetup{
			Guests: h.Store, Disks: h.Store, LiveDisks: h.Store, Images: h.Store, Seeds: h.Store, FirstStarts: h.Store, Commits: h.Store,
			AddImage: func(_ *testing.T, c store.Content, size int64) { h.AddImage(c, size) },
		}
	})
}

// kubelet remembers the pod of each container.
type kubelet struct {
	*hosttest.Host
	pods map[string]string
}

func (k kubelet) RunPod(_ *testing.T, pod, handler string) {
	k.AddPod(pod, runtime.Pod{Handler: handler, Type: "io.containerd.runc.v2"})
}

func (k kubelet) Create(_ *testing.T, pod, name string) string {
	id := k.CreateContainer(pod, name)
	k.pods[id] = pod
	return id
}

func (k kubelet) Start(t *testing.T, id string) {
	if started, _ := k.StartContainer(k.pods[id], "guest"); started != id {
		t.Fatalf("started %s, not %s", started, id)
	}
}

func (k kubelet) Stop(t *testing.T, id string) {
	if !k.EndContainer(id) {
		t.Fatalf("%s does not run", id)
	}
}

func TestRuntime(t *testing.T) {
	h, away := hosttest.New(), hosttest.New()
	away.SetRuntimeDown(true)
	hosttest.TestRuntime(t, hosttest.RuntimeSetup{Containers: h.Runtime, Kubelet: kubelet{h, map[string]string{}}, Away: away.Runtime})
}

func TestVolumes(t *testing.T) {
	hosttest.TestVolumes(t, func(*testing.T) hosttest.VolumesSetup {
		h := hosttest.New()
		return hosttest.VolumesSetup{
			Attachments: h.Volumes, Workers: h.Volumes,
			Claim: func(*testing.T, bool) string { return uuid.NewString() },
			Berth: func(_ *testing.T, claim string, block bool) (shim int, path string) {
				pod := uuid.NewString()
				h.MountVolume(pod, "/disks/data", claim, block)
				_, shim = h.StartContainer(pod, "guest")
				return shim, "/disks/data"
			},
			Use: func(t *testing.T, g volume.Guest, file string) (stop func()) {
				disk := fmt.Sprintf(`<devices><disk><source file="%s"/></disk>`, file)
				domain := strings.Replace(xml(h, g.UID, "user"), "<devices>", disk, 1)
				if err := h.Libvirt.CreatePaused(t.Context(), domain); err != nil {
					t.Fatal(err)
				}
				return func() { h.KillQEMU(g.UID) }
			},
		}
	})
}

// TestADeviceIsDetachedUnderAQEMU: the kernel does not refuse it, so whoever does it is told.
func TestADeviceIsDetachedUnderAQEMU(t *testing.T) {
	h := hosttest.New()
	g := volume.Guest{UID: uuid.NewString()}
	h.MountVolume("pod", "/disks/data", "claim", true)
	_, shim := h.StartContainer("pod", "guest")
	if err := h.Volumes.Attach(t.Context(), g, shim, volume.Volume{Disk: "data", Path: "/disks/data", Block: true}); err != nil {
		t.Fatal(err)
	}
	disk := fmt.Sprintf(`<devices><disk><source dev="/run/berth/volumes/%s/data.raw"/></disk>`, g.UID)
	if err := h.Libvirt.CreatePaused(t.Context(), strings.Replace(xml(h, g.UID, "user"), "<devices>", disk, 1)); err != nil {
		t.Fatal(err)
	}
	if err := h.Volumes.Detach(t.Context(), g.UID); err != nil {
		t.Fatal(err)
	}
	expectBreach(t, h, "device data of guest "+g.UID)
	if err := h.Volumes.Grant(t.Context(), 7); err != nil || !h.HasGroup(7) || h.HasGroup(8) {
		t.Errorf("a group was not granted, %v", err)
	}
}
