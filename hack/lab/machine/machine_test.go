package machine

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHierarchiesAreReadFromMounts(t *testing.T) {
	for name, c := range map[string]struct {
		mounts string
		want   []hierarchy
	}{
		"version 1 has one for each controller, and the flags of mount(2) are none": {
			mounts: "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n" +
				"cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,nodev,noexec,relatime,cpu,cpuacct 0 0\n" +
				"cgroup /sys/fs/cgroup/systemd cgroup rw,relatime,xattr,release_agent=/lib/x,name=systemd 0 0\n" +
				"cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime,nsdelegate 0 0\n",
			want: []hierarchy{
				{"/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"},
				{"/sys/fs/cgroup/systemd", "cgroup", "name=systemd"},
				{"/sys/fs/cgroup/unified", "cgroup2", ""},
			},
		},
		"version 2 has one for all": {
			mounts: "cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0\n",
			want:   []hierarchy{{"/sys/fs/cgroup", "cgroup2", ""}},
		},
		"those mounted elsewhere are somebody's own": {
			mounts: "cgroup /mnt/cpu cgroup rw,cpu 0 0\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, parseHierarchies(c.mounts), cmp.AllowUnexported(hierarchy{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStartTimeIsFoundBehindAnyName(t *testing.T) {
	got, err := startTime("12 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21")
	if err != nil || got != 4711 {
		t.Errorf("got %d, %v; want 4711", got, err)
	}
	if _, err := startTime("12 (a) S 1"); err == nil {
		t.Error("a short line must be an error")
	}
}

func TestADeadMachineHasNoPid(t *testing.T) {
	dir := Dir(t.TempDir())
	if pid := dir.Pid(); pid != 0 {
		t.Errorf("a machine that never ran has process %d", pid)
	}
}

func TestACommandReachesAnEmulatedMachineAsItIs(t *testing.T) {
	want := []string{"printf", "%s\n", "two words", "it's", `"$HOME"`, "", "*"}
	argv := sshCommand(Spec{Address: "10.97.0.26/24", SSHKey: "key"}, want, false)
	i := slices.Index(argv, "root@10.97.0.26")
	if i < 0 {
		t.Fatalf("no address in %q", argv)
	}
	// sshd hands what ssh has joined to a shell.
	out, err := exec.Command("sh", "-c", strings.Join(argv[i+2:], " ")).Output()
	if got := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n"); err != nil || !slices.Equal(got, want[2:]) {
		t.Errorf("got %q, %v; want %q", got, err, want[2:])
	}
}
