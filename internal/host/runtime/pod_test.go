package runtime

import "testing"

func TestForeign(t *testing.T) {
	for name, c := range map[string]struct {
		pod  Pod
		want string
	}{
		"containerd's default":               {pod: Pod{Type: "io.containerd.runc.v2"}},
		"crun by containerd":                 {pod: Pod{Type: "io.containerd.runc.v2", Handler: "crun"}},
		"a handler that only adds to runc":   {pod: Pod{Type: "io.containerd.runc.v2", Handler: "nvidia"}},
		"CRI-O's default":                    {pod: Pod{}},
		"crun by CRI-O":                      {pod: Pod{Handler: "crun"}},
		"gVisor as containerd's default":     {pod: Pod{Type: "io.containerd.runsc.v1"}, want: "io.containerd.runsc.v1"},
		"Kata under the name of runc":        {pod: Pod{Type: "io.containerd.kata.v2", Handler: "runc"}, want: "io.containerd.kata.v2"},
		"Kata by CRI-O, which tells no type": {pod: Pod{Handler: "kata"}, want: "kata"},
	} {
		if got := c.pod.Unsupported(); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
