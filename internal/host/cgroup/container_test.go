package cgroup

import (
	"strings"
	"testing"
)

const (
	uid   = "0c0ff33e-1111-2222-3333-444444444444"
	under = "0c0ff33e_1111_2222_3333_444444444444"
)

var (
	idA = strings.Repeat("a1", 32)
	idB = strings.Repeat("b2", 32)
)

func TestContainer(t *testing.T) {
	for name, c := range map[string]struct {
		cgroup  string
		pod, id string
	}{
		"containerd, cgroupfs, v1": {
			cgroup: "9:name=systemd:/kubepods/burstable/pod" + uid + "/" + idA + "\n4:memory:/kubepods/burstable/pod" + uid + "/" + idA + "\n0::/\n",
			pod:    uid, id: idA,
		},
		"a guaranteed pod has no class in its path": {cgroup: "0::/kubepods/pod" + uid + "/" + idA, pod: uid, id: idA},
		"CRI-O, cgroupfs": {cgroup: "0::/kubepods/besteffort/pod" + uid + "/crio-" + idA, pod: uid, id: idA},
		"containerd, systemd, v2": {
			cgroup: "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice/cri-containerd-" + idA + ".scope",
			pod:    uid, id: idA,
		},
		"containerd, systemd, guaranteed": {
			cgroup: "0::/kubepods.slice/kubepods-pod" + under + ".slice/cri-containerd-" + idA + ".scope",
			pod:    uid, id: idA,
		},
		"CRI-O with crun's own cgroup below": {
			cgroup: "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod" + under + ".slice/crio-" + idA + ".scope/container",
			pod:    uid, id: idA,
		},
		"a kubelet with a cgroup root of its own, cgroupfs": {cgroup: "0::/node1/kubepods/burstable/pod" + uid + "/" + idA, pod: uid, id: idA},
		"a kubelet with a cgroup root of its own, systemd": {
			cgroup: "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" + under + ".slice/cri-containerd-" + idA + ".scope",
			pod:    uid, id: idA,
		},
		"a static pod's UID is a hash": {cgroup: "0::/kubepods/burstable/pod0123456789abcdef0123456789abcdef/" + idA, pod: "0123456789abcdef0123456789abcdef", id: idA},
		"a container that made cgroups with names like kubelet's": {
			cgroup: "0::/kubepods/burstable/pod" + uid + "/" + idA + "/kubepods/burstable/podeeeeeeee-0000-0000-0000-000000000000/" + idB,
			pod:    uid, id: idA,
		},
		"a cgroup that its container left behind":    {cgroup: "0::/kubepods/pod" + uid + "/" + idA + " (deleted)", pod: uid, id: idA},
		"a process that is being moved is in none":   {cgroup: "1:cpu:/kubepods/pod" + uid + "/" + idA + "\n2:memory:/kubepods/pod" + uid + "/" + idB},
		"a pod's own cgroup is no container":         {cgroup: "0::/kubepods/burstable/pod" + uid},
		"a machine in a pod's slice is no container": {cgroup: "0::/kubepods.slice/kubepods-pod" + under + ".slice/machine-qemu.scope/libvirt/emulator"},
		"CRI-O's monitor is no container":            {cgroup: "0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-conmon-" + idA + ".scope"},
		"a pod's name outside of kubelet's tree":     {cgroup: "0::/user/pod" + uid + "/" + idA},
		"a service of the host":                      {cgroup: "0::/system.slice/libvirtd.service"},
		"the root":                                   {cgroup: "0::/"},
		"a container that is no pod's":               {cgroup: "0::/docker/" + idA},
	} {
		t.Run(name, func(t *testing.T) {
			g, err := Parse([]byte(c.cgroup))
			if err != nil {
				t.Fatal(err)
			}
			pod, id, ok := g.Container()
			if pod != c.pod || id != c.id || ok != (c.pod != "") {
				t.Errorf("Container() = %q, %q, %t; want %q, %q", pod, id, ok, c.pod, c.id)
			}
		})
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{"", "\n", "0:/", "a:b:c", "1:cpu:relative\n"} {
		if g, err := Parse([]byte(text)); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", text, g)
		}
	}
}

func TestParseMounts(t *testing.T) {
	const mounts = `25 1 0:23 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro
30 25 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
31 25 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
32 25 0:29 / /odd\040place rw - cgroup cgroup rw,memory
33 25 0:30 /kubepods/x /mine/pids rw - cgroup cgroup rw,pids
34 25 0:31 / /readonly/freezer ro - cgroup cgroup rw,freezer
35 25 0:32 / /sys/fs/cgroup/unified rw shared:1 master:2 - cgroup2 cgroup2 rw,nsdelegate
garbage
`
	h := &Host{dirs: parseMounts([]byte(mounts))}
	for hierarchy, want := range map[string]string{
		"cpu,cpuacct":  "/sys/fs/cgroup/cpu,cpuacct/a",
		"name=systemd": "/sys/fs/cgroup/systemd/a",
		"memory":       "/odd place/a",
		"":             "/sys/fs/cgroup/unified/a",
		"pids":         "", // begins further down
		"freezer":      "", // cannot be written
		"devices":      "", // not mounted
	} {
		got, err := h.dir(hierarchy, "/a")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("dir(%q) = %q, %v; want %q", hierarchy, got, err, want)
		}
	}
	if got, err := h.dir("memory", "/../elsewhere"); err == nil {
		t.Errorf("dir outside of the namespace = %q, want an error", got)
	}
}

func TestSlicePath(t *testing.T) {
	const want = "/a.slice/a-kubepods.slice/a-kubepods-burstable.slice"
	if got := slicePath("a-kubepods-burstable"); got != want {
		t.Errorf("slicePath() = %q, want %q", got, want)
	}
	own := "/a.slice/a-kubepods.slice/a-kubepods-besteffort.slice/a-kubepods-besteffort-pod" + under + ".slice/cri-containerd-" + idA + ".scope"
	if got := slicePrefix(own); got != "a-kubepods" {
		t.Errorf("stemOf() = %q", got)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("4:memory:/kubepods/burstable/pod" + uid + "/" + idA + "\n0::/\n"))
	f.Add([]byte("0::/kubepods.slice/kubepods-pod" + under + ".slice/crio-" + idA + ".scope/x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := Parse(data)
		if err != nil {
			return
		}
		pod, id, ok := g.Container()
		if ok && (pod == "" || len(id) != 64) || !ok && pod+id != "" {
			t.Errorf("Container() of %q = %q, %q, %t", data, pod, id, ok)
		}
		for _, p := range g.paths {
			if where, named := containerOf(p); named && !strings.HasPrefix(p, where.root) {
				t.Errorf("root %q of %q", where.root, p)
			}
		}
	})
}
