package cgroup

import (
	"os"
	"path/filepath"
	"testing"
)

// onV2 is a host whose only hierarchy is v2, in a directory that has the given files.
func onV2(t *testing.T, files map[string]string) *Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &Host{dirs: map[string]string{unified: root}}
}

func TestMemoryOnV2(t *testing.T) {
	scope := "/kubepods.slice/kubepods-pod" + under + ".slice/cri-containerd-" + idA + ".scope"
	g := Group{paths: map[string]string{unified: scope + "/below"}} // counted where the limit is
	h := onV2(t, map[string]string{
		scope + "/memory.events": "low 0\nhigh 0\nmax 17\noom 3\noom_kill 2\noom_group_kill 0\n",
		scope + "/memory.stat":   "anon 4096\nanon_thp 7\n",
	})
	if n, err := h.OOMKills(g); n != 2 || err != nil {
		t.Errorf("OOMKills() = %d, %v; want 2", n, err)
	}
	if n, err := h.Uncharged(g, os.Getpid()); n < 1<<20 || n%(1<<10) != 0 || err != nil {
		t.Errorf("Uncharged() = %d, %v; want what this test has, less a page", n, err)
	}
}

func TestPartition(t *testing.T) {
	const slice = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + under + ".slice"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"kubelet has made the pod's slice": {
			files: map[string]string{slice + "/cgroup.procs": ""},
			want:  "/kubepods/burstable/pod" + under,
		},
		"kubelet has not made it yet":    {},
		"kubelet uses no slices":         {files: map[string]string{"/kubepods/burstable/pod" + uid + "/cgroup.procs": ""}},
		"it is the slice of another pod": {files: map[string]string{"/kubepods.slice/kubepods-pod1.slice/cgroup.procs": ""}},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := onV2(t, c.files).Partition(uid); got != c.want || err != nil {
				t.Errorf("Partition() = %q, %v; want %q", got, err, c.want)
			}
		})
	}
}
