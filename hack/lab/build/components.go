package build

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
)

// component is a module below components/ whose tools are built together.
type component struct {
	name string
	// module whose version in go.mod is written into the binaries.
	module string
	tags   string
	// stamp lists variables of what a binary says of itself: %s is the module's version, %m its minor part.
	stamp []string
	cgo   bool
	// rename gives a binary the name that the world knows it by.
	rename map[string]string
}

const kubernetesVersion = "k8s.io/component-base/version."

// components in the order in which a lab waits for them.
var components = []component{
	{
		name: "kubernetes", module: "k8s.io/kubernetes",
		// Helm and kubectl compare it, Pod Security admission panics without it.
		stamp: []string{kubernetesVersion + "gitVersion=%s", kubernetesVersion + "gitMajor=1", kubernetesVersion + "gitMinor=%m", kubernetesVersion + "gitTreeState=clean"},
	},
	{name: "etcd", module: "go.etcd.io/etcd/server/v3", rename: map[string]string{"server": "etcd"}},
	{
		name: "containerd", module: "github.com/containerd/containerd/v2", tags: "no_btrfs no_devmapper no_zfs",
		stamp: []string{"github.com/containerd/containerd/v2/version.Version=%s"},
	},
	{name: "runc", module: "github.com/opencontainers/runc", tags: "seccomp", cgo: true},
	{name: "cni", module: "github.com/containernetworking/plugins"},
	{name: "coredns", module: "github.com/coredns/coredns"},
	{name: "csi", module: "github.com/kubernetes-csi/external-provisioner/v6"},
	{name: "helm", module: "helm.sh/helm/v3", stamp: []string{"helm.sh/helm/v3/internal/version.version=%s"}},
}

// Components builds what is not in the cache yet and returns, by component, the
// directories of binaries. source is the folder of the components' modules.
func (c *Cache) Components(source string) (map[string]string, error) {
	dirs := map[string]string{}
	for _, comp := range components {
		dir, err := c.component(filepath.Join(source, comp.name), comp)
		if err != nil {
			return nil, err
		}
		dirs[comp.name] = dir
	}
	return dirs, nil
}

func (c *Cache) component(source string, comp component) (string, error) {
	mod, err := os.ReadFile(filepath.Join(source, "go.mod"))
	if err != nil {
		return "", err
	}
	sum, err := os.ReadFile(filepath.Join(source, "go.sum"))
	if err != nil {
		return "", err
	}
	version, err := moduleVersion(string(mod), comp.module)
	if err != nil {
		return "", err
	}
	replace := strings.NewReplacer("%s", version, "%m", minor(version))
	ldflags := []string{"-s", "-w"}
	for _, s := range comp.stamp {
		ldflags = append(ldflags, "-X", replace.Replace(s))
	}
	args := []string{"go", "build", "-trimpath", "-tags", comp.tags, "-ldflags", strings.Join(ldflags, " ")}
	key := strings.Join(append(args, string(mod), string(sum), runtime.Version()), "\n")
	return c.part(comp.name, key, func(dir string) error {
		cgo := "CGO_ENABLED=0"
		if comp.cgo {
			cgo = "CGO_ENABLED=1"
		}
		if err := run(source, []string{cgo, "GOFLAGS=", "GOWORK=off"}, append(args, "-o", dir+"/", "tool")...); err != nil {
			return err
		}
		for from, to := range comp.rename {
			if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
				return err
			}
		}
		return nil
	})
}

// moduleVersion finds the version that a go.mod requires of a module.
func moduleVersion(mod, module string) (string, error) {
	m := regexp.MustCompile(`(?m)^(?:require)?\s+` + regexp.QuoteMeta(module) + `\s+(v\S+)`).FindStringSubmatch(mod)
	if m == nil {
		return "", fmt.Errorf("go.mod does not require %s", module)
	}
	return m[1], nil
}

// Program builds one of a module's own programs, as it is now, and returns its path. Without -trimpath it shares what
// go test has compiled.
func (c *Cache) Program(module, pkg string, tags ...string) (string, error) {
	name := strings.Join(append([]string{filepath.Base(pkg)}, tags...), "-")
	path := filepath.Join(c.Dir, "programs", name)
	tags = append(tags, "grpcnotrace")
	err := c.Step("build "+name, func() error {
		return run(module, []string{"CGO_ENABLED=0", "GOFLAGS="},
			"go", "build", "-buildvcs=false", "-tags="+strings.Join(tags, ","), "-ldflags=-s -w", "-o", path, pkg)
	})
	return path, err
}

// minor part of a version: 37 of v1.37.2.
func minor(version string) string {
	parts := strings.Split(version, ".")
	if len(parts) < 2 {
		return ""
	}
	return parts[1]
}
