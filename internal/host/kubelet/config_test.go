package kubelet

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for name, c := range map[string]struct {
		args  []string
		files []string
		want  Config
	}{
		"nothing is configured": {},
		"an empty file":         {files: []string{""}},
		"all of it": {
			files: []string{"kind: KubeletConfiguration\nshutdownGracePeriod: 3m0s\nshutdownGracePeriodCriticalPods: 30s\nsingleProcessOOMKill: true\npodPidsLimit: 2048\nevictionHard: {memory.available: 100Mi}\n"},
			want:  Config{ShutdownGrace: 3 * time.Minute, ShutdownGraceCritical: 30 * time.Second, SingleProcessOOMKill: true, PodPIDs: 2048},
		},
		"no limit of processes": {files: []string{"podPidsLimit: -1"}},
		"JSON":                  {files: []string{`{"podPidsLimit": 7, "shutdownGracePeriod": "1m"}`}, want: Config{PodPIDs: 7, ShutdownGrace: time.Minute}},
		"a later file overrules an earlier one": {
			files: []string{"podPidsLimit: 100\nshutdownGracePeriod: 1m", "podPidsLimit: 200"},
			want:  Config{PodPIDs: 200, ShutdownGrace: time.Minute},
		},
		"the command line overrules the files": {
			args: []string{"kubelet", "--pod-max-pids=300"}, files: []string{"podPidsLimit: 100"}, want: Config{PodPIDs: 300},
		},
		"periods by priority": {
			files: []string{"shutdownGracePeriodByPodPriority:\n- {priority: 0, shutdownGracePeriodSeconds: 120}\n- {priority: 2000000000, shutdownGracePeriodSeconds: 30}\n"},
			want:  Config{ShutdownGrace: 150 * time.Second, ShutdownGraceCritical: 30 * time.Second},
		},
	} {
		t.Run(name, func(t *testing.T) {
			var files [][]byte
			for _, f := range c.files {
				files = append(files, []byte(f))
			}
			got, err := parse(c.args, files)
			if err != nil || got != c.want {
				t.Errorf("%+v %v, want %+v", got, err, c.want)
			}
		})
	}
	for name, text := range map[string]string{
		"no YAML":           "a: b: c",
		"no duration":       "shutdownGracePeriod: soon",
		"a list for a word": "podPidsLimit: [1]",
	} {
		if got, err := parse(nil, [][]byte{[]byte(text)}); err == nil {
			t.Errorf("%s: read as %+v", name, got)
		}
	}
}

func TestPaths(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "etc/kubelet.d")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"20-b.conf", "10-a.conf", "note.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got := paths(root, []string{"/usr/bin/kubelet", "--config", "/etc/kubelet.yaml", "--config-dir=/etc/kubelet.d", "--v=2"})
	want := []string{"/etc/kubelet.yaml", "/etc/kubelet.d/10-a.conf", "/etc/kubelet.d/20-b.conf"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("shutdownGracePeriod: 1m\npodPidsLimit: 5")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := parse(nil, [][]byte{[]byte(text)}); err == nil && c.PodPIDs < 0 {
			t.Errorf("a limit of %d", c.PodPIDs)
		}
	})
}
