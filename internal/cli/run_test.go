package cli

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestWordsReachInit(t *testing.T) {
	for _, c := range []struct {
		name         string
		words        []string
		append, want string
		fails        string
	}{
		{"none", nil, "", "console=ttyS0", ""},
		{"more of the kernel's", nil, "quiet panic=1", "console=ttyS0 quiet panic=1", ""},
		{"init's", []string{"exit=3", "-x"}, "", "console=ttyS0 -- exit=3 -x", ""},
		{"with a space", []string{"a b", ""}, "quiet", `console=ttyS0 quiet -- "a b" ""`, ""},
		{"with a quote", []string{`a"b`}, "", "", "cannot stand on a kernel's command line"},
		{"with a line's end", []string{"a\nb"}, "", "", "cannot stand on a kernel's command line"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := &runOptions{kernel: true, pull: "missing", kernelArgs: c.append, memory: "64Mi", cpus: 1, name: "k", initrd: "/boot/initrd"}
			vm, err := o.vm("default", "registry.example.org/k:1", c.words)
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Fatalf("it fails with %v, not %q", err, c.fails)
				}
				return
			}
			if err != nil || vm.Spec.Kernel.CommandLine != c.want {
				t.Errorf("the command line is %q, %v, not %q", vm.Spec.Kernel.CommandLine, err, c.want)
			}
		})
	}
}

func TestNamesOfImages(t *testing.T) {
	for image, want := range map[string]string{
		"quay.io/containerdisks/debian:12":                          `debian-[a-z0-9]{5}`,
		"localhost:5000/a/Web_Server":                               `web-server-[a-z0-9]{5}`,
		"registry.example.org/x/my_app.v2@sha256:" + zeros:          `my-app-v2-[a-z0-9]{5}`,
		"registry.example.org/" + strings.Repeat("long-", 20) + "x": `(long-){9}long-[a-z0-9]{5}`,
	} {
		got := nameOf(image)
		if !regexp.MustCompile("^(.*-)?"+want+"$").MatchString(got) || len(got) > 63 || !regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`).MatchString(got) {
			t.Errorf("nameOf(%q) = %q, want %s", image, got, want)
		}
	}
}

var zeros = strings.Repeat("0", 64)

func TestPorts(t *testing.T) {
	port := func(name string, protocol corev1.Protocol, outer, inner int32) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Protocol: protocol, Port: outer, TargetPort: intstr.FromInt32(inner)}
	}
	o := &runOptions{publish: []string{"80", "8080:80", "53/udp", "5353:53/UDP"}}
	got, err := o.ports()
	want := []corev1.ServicePort{port("tcp-80", "TCP", 80, 80), port("tcp-8080", "TCP", 8080, 80), port("udp-53", "UDP", 53, 53), port("udp-5353", "UDP", 5353, 53)}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	for _, bad := range []string{"", "0", "a:b", "80/sctp", "80:", ":80", "1:2:3", "80/", "-1"} {
		if _, err := (&runOptions{publish: []string{bad}}).ports(); err == nil || !strings.Contains(err.Error(), "write [PORT:]PORT[/udp]") {
			t.Errorf("-p %q: %v", bad, err)
		}
	}
}

func TestSSHKeys(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	if err := os.Mkdir(filepath.Join(home, ".ssh"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"id_ed25519.pub": "ssh-ed25519 AAAA me\n", "id_rsa": "PRIVATE", "id_rsa.pub": "# mine\nssh-rsa BBBB\n\n",
	} {
		if err := os.WriteFile(filepath.Join(home, ".ssh", name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(home, ".ssh", "id_rsa.pub")
	for _, c := range []struct {
		name string
		o    runOptions
		want []string
	}{
		{"the user's own", runOptions{}, []string{"ssh-ed25519 AAAA me", "ssh-rsa BBBB"}},
		{"none for a kernel", runOptions{kernel: true}, nil},
		{"none by wish", runOptions{hasKeys: true, keys: []string{""}}, nil},
		{"one, and a file", runOptions{hasKeys: true, keys: []string{"ssh-dss CCCC", file}}, []string{"ssh-dss CCCC", "ssh-rsa BBBB"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := c.o.sshKeys()
			if diff := cmp.Diff(c.want, got); diff != "" || err != nil {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
	if _, err := (&runOptions{hasKeys: true, keys: []string{"missing.pub"}}).sshKeys(); err == nil {
		t.Error("a file that is missing is no error")
	}
}
