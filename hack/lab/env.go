package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/berth-dev/berth/hack/lab/cluster"
)

func (t *tool) envPath() string { return filepath.Join(t.lab.Dir, "env") }

// writeEnv keeps what env prints, so that asking for it builds nothing.
func (t *tool) writeEnv(images map[string]string, kvm bool) error {
	bin := filepath.Join(t.lab.Dir, "bin")
	if err := os.RemoveAll(bin); err != nil {
		return err
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	links := map[string]string{"lab": t.lab.Self}
	for component, names := range map[string][]string{"kubernetes": {"kubectl"}, "helm": {"helm"}, "containerd": {"ctr"}} {
		for _, name := range names {
			links[name] = filepath.Join(t.lab.Bin[component], name)
		}
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(bin, name)); err != nil {
			return err
		}
	}
	vars := map[string]string{
		"KUBECONFIG":        t.lab.Kubeconfig(),
		"LAB_REGISTRY":      cluster.Registry,
		"LAB_TEST_REGISTRY": cluster.TestRegistry,
		"LAB_TEST_WEB":      cluster.TestWeb,
		"LAB_MIRRORED":      cluster.MirroredRegistry,
		"LAB_NODES":         strings.Join(t.lab.Nodes(), " "),
		"LAB_DIR":           t.lab.Dir,
		"LAB_KVM":           fmt.Sprint(kvm),
	}
	maps.Copy(vars, images)
	lines := []string{fmt.Sprintf("export PATH=%s:$PATH", bin)}
	for name, value := range vars {
		lines = append(lines, fmt.Sprintf("export %s='%s'", name, value))
	}
	sort.Strings(lines)
	return os.WriteFile(t.envPath(), []byte(strings.Join(lines, "\n")+"\n"), 0o644)
}

// env prints what a shell needs to work with the lab.
func (t *tool) env() error {
	raw, err := os.ReadFile(t.envPath())
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("no lab is up: run `make lab-up` first")
	}
	if err != nil {
		return err
	}
	if t.lab.HasSystemdHost() { // it comes and goes
		raw = fmt.Appendf(raw, "export LAB_SYSTEMD_HOST='%s'\n", cluster.SystemdHost.Name())
	}
	_, err = os.Stdout.Write(raw)
	return err
}

// parts prints where tests find the real parts that they are run against.
func (t *tool) parts() error {
	if _, err := t.components(); err != nil {
		return err
	}
	dir := filepath.Join(t.cache.Dir, "parts")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, component := range map[string]string{
		"kube-apiserver": "kubernetes", "kube-scheduler": "kubernetes", "kubectl": "kubernetes", "etcd": "etcd", "helm": "helm",
		"containerd": "containerd", "containerd-shim-runc-v2": "containerd", "ctr": "containerd", "runc": "runc",
	} {
		link := filepath.Join(dir, name)
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(filepath.Join(t.lab.Bin[component], name), link); err != nil {
			return err
		}
	}
	tiny, err := t.cache.Tiny()
	if err != nil {
		return err
	}
	programs, err := t.hostile()
	if err != nil {
		return err
	}
	hostile, err := t.cache.Hostile(programs)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("export KUBEBUILDER_ASSETS='%s'\nexport BERTH_TINY_GUEST='%s'\nexport BERTH_HOSTILE_GUEST='%s'\nexport PATH='%s':$PATH\n", dir, tiny, hostile, dir)
	return err
}
