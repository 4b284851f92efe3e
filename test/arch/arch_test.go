package arch

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/berth-dev/berth/"

// Words of the table.
var (
	nouns    = []string{"api/v1alpha1"}
	thoughts = []string{"api/v1alpha1", "internal/berth", "internal/condition", "internal/fault"}

	clients = []string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime"}
	foreign = []string{
		"github.com/digitalocean/go-libvirt", "github.com/google/nftables", "github.com/vishvananda/netlink", "k8s.io/cri-api", "oras.land/oras-go",
	}
	xml = []string{"libvirt.org/go/libvirtxml"}
)

type row struct {
	rule  string   // as a sentence
	of    string   // a package; with /... its tree; with /* each folder in it
	ours  []string // what of our own it may reach besides itself
	never []string // what of others it must not reach; a path means its tree
}

// rows are the whole law: a package falls under the first row that names it.
var rows = []row{
	{"the nouns stand alone", "api/...", nil, join(clients, foreign, xml)},
	{"the protocol is as small as the shim", "internal/berth/shimproto", nil, join(foreign, xml, []string{"k8s.io", "sigs.k8s.io"})},
	{"the link of shim and guest program knows neither", "internal/berth/guestlink", nil, join(foreign, xml, []string{"k8s.io", "sigs.k8s.io", "golang.org/x"})},
	{"whoever reads archives needs nothing", "internal/untar", nil, join(foreign, xml, []string{"k8s.io", "sigs.k8s.io", "golang.org/x", "net"})},
	{"the handshake is thought", "internal/berth", thoughts, join(clients, foreign, xml)},
	{"conditions are arithmetic", "internal/condition", nouns, join(clients, foreign, xml)},
	{"a class of error needs a reason", "internal/fault", nouns, join(clients, foreign, xml)},
	{"talking to Kubernetes touches no host", "internal/kube", []string{"api/v1alpha1", "internal/fault"}, join(foreign, xml)},
	{"thinking about guests touches nothing", "internal/guest/...", thoughts, join(clients, foreign)},
	{"the host in memory stands in for packages of internal/host alone", testsAlone, join(nouns, []string{"internal/fault", "internal/guest/diskformat", "internal/host/*"}), clients},
	{"entering a namespace needs a kernel alone", "internal/host/namespace", nil, join(clients, foreign, xml)},
	{"host packages know neither siblings nor Kubernetes", "internal/host/*", join(nouns, []string{"internal/fault", "internal/guest/diskformat", "internal/host/namespace"}), clients},
	{"a worker sees a volume and an image alone", "internal/worker", join(nouns, []string{"internal/fault", "internal/guest/diskformat"}), join(clients, foreign, xml)},
	{"the operator touches no host", "controllers/...", join(thoughts, []string{"internal/kube"}), join(foreign, xml)},
	{"a room of the agent knows no other", "internal/agent/*", join(thoughts, []string{"internal/kube", "internal/berth/shimproto", "internal/guest/...", "internal/host/...", "internal/worker"}), nil},
	{"only the agent joins guest and host", "internal/agent/...", join(thoughts, []string{"internal/kube", "internal/berth/shimproto", "internal/guest/...", "internal/host/...", "internal/worker"}), nil},
	{"the shim stays tiny", "internal/shim/...", []string{"internal/berth/shimproto", "internal/berth/guestlink"}, join(foreign, xml, []string{"k8s.io", "sigs.k8s.io"})},
	{"the guest program needs a kernel and stays small", "internal/guesttools/...", []string{"internal/berth/guestlink", "internal/untar"}, join(foreign, xml, []string{"k8s.io", "sigs.k8s.io", "net", "os/exec"})},
	{"the operator's process is its loop", "cmd/berth-operator", join(thoughts, []string{"controllers/...", "internal/kube"}), join(foreign, xml)},
	{"the agent's process is its loop", "cmd/berth-agent", join(thoughts, []string{"internal/agent/...", "internal/kube", "internal/berth/shimproto", "internal/guest/...", "internal/host/...", "internal/worker"}), nil},
	{"the shim's process is its loop", "cmd/berth-shim", []string{"internal/shim/...", "internal/berth/shimproto", "internal/berth/guestlink"}, join(foreign, xml, []string{"k8s.io", "sigs.k8s.io"})},
	{"kubectl-vm is a client of the API like any other", "internal/cli/...", join(nouns, []string{"internal/berth", "internal/fault", "internal/kube", "internal/untar", "third_party/novnc"}), join(foreign, xml)},
	{"kubectl-vm's process is its command line", "cmd/kubectl-vm", join(nouns, []string{"internal/cli/...", "internal/berth", "internal/fault", "internal/kube", "internal/untar", "third_party/novnc"}), join(foreign, xml)},
	{"what is others' stands alone", "third_party/...", nil, join(clients, foreign, xml)},
	{"the guest program's process is its loop", "cmd/berth-guest", []string{"internal/guesttools/...", "internal/berth/guestlink", "internal/untar"}, join(foreign, xml, []string{"k8s.io", "sigs.k8s.io", "net", "os/exec"})},
	{"tests stand outside", "test/...", []string{"..."}, nil},
}

// testsAlone is what no part of the product reaches.
const testsAlone = "internal/host/hosttest"

// owners of what is foreign: whoever reaches it, reaches it through them.
var owners = map[string]string{
	"github.com/digitalocean/go-libvirt": "internal/host/libvirtd",
	"github.com/google/nftables":         "internal/host/podnet",
	"github.com/vishvananda/netlink":     "internal/host/podnet",
	"github.com/lima-vm/go-qcow2reader":  "internal/worker",
	"k8s.io/cli-runtime":                 "internal/cli", // for users' machines, and large
	"k8s.io/cri-api":                     "internal/host/runtime",
	"k8s.io/kubectl":                     "internal/cli",
	"libvirt.org/go/libvirtxml":          "internal/guest/domain",
	"oras.land/oras-go":                  "internal/host/image",
}

type pkg struct {
	ImportPath string
	Deps       []string // transitive
}

// packages of the product with all that they reach, without tests. What cannot
// be resolved is the compiler's to tell.
func packages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Deps", module+"...").Output()
	if err != nil {
		t.Fatalf("listing packages: %v", err)
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatalf("reading packages: %v", err)
		}
		all = append(all, p)
	}
}

func TestNoPackageReachesWhatItsRowDoesNotName(t *testing.T) {
	for _, p := range packages(t) {
		for _, breach := range breaches(p) {
			t.Error(breach)
		}
	}
}

func TestBreaches(t *testing.T) {
	for _, c := range []struct {
		name string
		pkg  pkg
		want []string
	}{
		{"a host package may know reasons", pkg{"internal/host/cgroup", []string{module + "api/v1alpha1", "k8s.io/api/core/v1"}}, nil},
		{"and what lies below it", pkg{"internal/host/cgroup", []string{module + "internal/host/cgroup/v2"}}, nil},
		{"but no sibling", pkg{"internal/host/cgroup", []string{module + "internal/host/process"}}, []string{
			"internal/host/cgroup reaches internal/host/process, but host packages know neither siblings nor Kubernetes",
		}},
		{"nor what thinks", pkg{"internal/host/store", []string{module + "internal/guest/plan"}}, []string{
			"internal/host/store reaches internal/guest/plan, but host packages know neither siblings nor Kubernetes",
		}},
		{"the host in memory joins them", pkg{"internal/host/hosttest", []string{module + "internal/host/store", module + "internal/fault"}}, nil},
		{"and knows no agent", pkg{"internal/host/hosttest", []string{module + "internal/agent/shims"}}, []string{
			"internal/host/hosttest reaches internal/agent/shims, but the host in memory stands in for packages of internal/host alone",
		}},
		{"no process stands on it", pkg{"internal/agent/shims", []string{module + "internal/host/hosttest"}}, []string{
			"internal/agent/shims reaches internal/host/hosttest, which is for tests alone",
		}},
		{"tests do", pkg{"test/bench", []string{module + "internal/host/hosttest"}}, nil},
		{"nor the API server", pkg{"internal/host/store", []string{"k8s.io/client-go/rest"}}, []string{
			"internal/host/store reaches k8s.io/client-go/rest, but host packages know neither siblings nor Kubernetes",
		}},
		{"rooms of the agent do not meet", pkg{"internal/agent/host", []string{module + "internal/agent/host/x", module + "internal/agent/pulls", module + "internal/agent"}}, []string{
			"internal/agent/host reaches internal/agent/pulls, but a room of the agent knows no other",
			"internal/agent/host reaches internal/agent, but a room of the agent knows no other",
		}},
		{"the agent joins its rooms", pkg{"internal/agent", []string{module + "internal/agent/host"}}, nil},
		{"the shim knows no Kubernetes at all", pkg{"internal/shim/console", []string{"k8s.io/api/core/v1"}}, []string{
			"internal/shim/console reaches k8s.io/api/core/v1, but the shim stays tiny",
		}},
		{"the shim's name is not its tree's", pkg{"internal/shimmer", nil}, []string{"internal/shimmer has no row: write down what it may reach"}},
		{"no agent links kubectl", pkg{"cmd/berth-agent", []string{"k8s.io/kubectl/pkg/cmd/util"}}, []string{
			"cmd/berth-agent reaches k8s.io/kubectl, which belongs to internal/cli",
		}},
		{"kubectl-vm knows no agent", pkg{"internal/cli", []string{module + "internal/agent", "k8s.io/kubectl/pkg/cmd/util"}}, []string{
			"internal/cli reaches internal/agent, but kubectl-vm is a client of the API like any other",
		}},
		{"what is foreign has an owner", pkg{"internal/agent", []string{"oras.land/oras-go/v2/registry"}}, []string{
			"internal/agent reaches oras.land/oras-go, which belongs to internal/host/image",
		}},
		{"through whom it may be reached", pkg{"internal/agent", []string{"oras.land/oras-go/v2/registry", module + "internal/host/image"}}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.pkg.ImportPath = module + c.pkg.ImportPath
			if diff := cmp.Diff(c.want, breaches(c.pkg)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// breaches of the law by a package, as sentences.
func breaches(p pkg) []string {
	name := strings.TrimPrefix(p.ImportPath, module)
	i := slices.IndexFunc(rows, func(r row) bool { return matches(name, r.of) })
	if i < 0 {
		return []string{name + " has no row: write down what it may reach"}
	}
	var found []string
	for _, dep := range p.Deps {
		own, isOwn := strings.CutPrefix(dep, module)
		if isOwn && !matchesAny(own, rows[i].ours) && !sameTree(own, rows[i].of, name) || !isOwn && within(dep, rows[i].never) {
			found = append(found, name+" reaches "+own+", but "+rows[i].rule)
		}
		if own == testsAlone && !matches(name, "test/...") {
			found = append(found, name+" reaches "+own+", which is for tests alone")
		}
	}
	for thing, owner := range owners {
		reaches := slices.ContainsFunc(p.Deps, func(dep string) bool { return within(dep, []string{thing}) })
		if reaches && name != owner && !slices.Contains(p.Deps, module+owner) {
			found = append(found, name+" reaches "+thing+", which belongs to "+owner)
		}
	}
	return found
}

// matches tells whether a package falls under a pattern: itself, a tree (/...)
// or the direct children of a folder, each with its tree (/*).
func matches(name, pattern string) bool {
	if dir, ok := strings.CutSuffix(pattern, "..."); ok {
		return name+"/" == dir || strings.HasPrefix(name, dir)
	}
	if dir, ok := strings.CutSuffix(pattern, "*"); ok {
		return strings.HasPrefix(name, dir)
	}
	return name == pattern
}

func matchesAny(name string, patterns []string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return matches(name, p) })
}

// sameTree tells whether a package and another belong together under a pattern.
func sameTree(own, pattern, name string) bool {
	if dir, ok := strings.CutSuffix(pattern, "*"); ok {
		child, _, _ := strings.Cut(strings.TrimPrefix(name, dir), "/")
		return matches(own, dir+child+"/...")
	}
	return matches(own, pattern)
}

func within(dep string, trees []string) bool {
	return slices.ContainsFunc(trees, func(tree string) bool { return dep == tree || strings.HasPrefix(dep, tree+"/") })
}

func join(lists ...[]string) []string { return slices.Concat(lists...) }
