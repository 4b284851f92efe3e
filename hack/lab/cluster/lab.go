package cluster

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/hack/lab/build"
	"github.com/berth-dev/berth/hack/lab/loop"
	"github.com/berth-dev/berth/hack/lab/machine"
	"github.com/berth-dev/berth/hack/lab/registry"
)

// RegistryVerb is the first argument with which this program serves the registry.
const RegistryVerb = "registry"

const (
	pauseImage   = Registry + "/lab/pause:1"
	corednsImage = Registry + "/lab/coredns:1"
	// startTimeout bounds the start of each of the lab's layers.
	startTimeout = 90 * time.Second
)

// Lab is a cluster below one directory.
type Lab struct {
	Dir  string
	Self string // this program, for what it runs in machines
	// Driver is the CSI driver's program.
	Driver string
	Bin    map[string]string // directories of binaries, by component
	*build.Progress
}

func (l Lab) machine(name string) machine.Dir {
	return machine.Dir(filepath.Join(l.Dir, "machines", name))
}

// Machine by name, or an error that says which there are.
func (l Lab) Machine(name string) (machine.Dir, error) {
	var running []string
	for _, m := range l.machines() {
		if m == name {
			return l.machine(name), nil
		}
		running = append(running, m)
	}
	return "", fmt.Errorf("no machine %q; there are: %s", name, strings.Join(running, " "))
}

// machines that have a directory, running or not.
func (l Lab) machines() []string {
	entries, _ := os.ReadDir(filepath.Join(l.Dir, "machines"))
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// Nodes that have a directory, but for the one with systemd.
func (l Lab) Nodes() []string {
	var nodes []string
	for _, m := range l.machines() {
		if m != control && m != SystemdHost.Name() {
			nodes = append(nodes, m)
		}
	}
	return nodes
}

func (l Lab) keys() keys { return keys(filepath.Join(l.Dir, "pki")) }

// Authority is the file of the certificate that signs the lab's.
func (l Lab) Authority() string { return l.keys().crt("ca") }

func (l Lab) registryDir() string { return filepath.Join(l.Dir, "registry") }

// volumes is where the CSI driver keeps volumes, a file each: all nodes see it.
func (l Lab) volumes() string { return filepath.Join(l.Dir, "volumes") }

// made lists the directories that this host lacked.
func (l Lab) made() string { return filepath.Join(l.Dir, "made") }

// Blobs is where the lab's registry keeps blobs.
func (l Lab) Blobs() string { return filepath.Join(l.registryDir(), registry.BlobDir) }

// Kubeconfig of the cluster's administrator.
func (l Lab) Kubeconfig() string { return l.keys().kubeconfig("admin") }

// Up brings up what is not up yet: the switch, the control plane, the nodes.
func (l Lab) Up(nodes int, images map[string]string) error {
	if err := l.alone(); err != nil {
		return err
	}
	if err := machine.Switch(l.Dir, cidr(hostAddress), routes("")); err != nil {
		return err
	}
	if err := machine.MakeMountPoints(nodePrivate, l.made()); err != nil {
		return err
	}
	ca, err := openAuthority(l.keys())
	if err != nil {
		return err
	}
	if err := controlKeys(ca); err != nil {
		return err
	}
	if err := l.start(l.controlSpec()); err != nil {
		return err
	}
	if err := l.wait("registry", "control/registry", func() error { return answers("http://" + Registry + "/v2/") }); err != nil {
		return err
	}
	// Pods need the first of these at once.
	if err := l.pushBinaries(images); err != nil {
		return err
	}
	var group sync.WaitGroup
	errs := make([]error, nodes)
	for i := range nodes {
		group.Go(func() { errs[i] = l.startNode(ca, Node(i+1)) })
	}
	group.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := l.wait("API server", "control/apiserver", func() error { return l.kubectl(nil, "get", "--raw=/readyz") }); err != nil {
		return err
	}
	addons, err := rendered("coredns.yaml", map[string]string{"Image": corednsImage, "DNS": serviceDNS, "Domain": clusterDomain})
	if err != nil {
		return err
	}
	storage, err := rendered("storage.yaml", nil)
	if err != nil {
		return err
	}
	if err := l.wait("DNS and storage", "control/apiserver", func() error {
		return l.kubectl(append(addons, storage...), "apply", "--server-side", "--force-conflicts", "-f", "-")
	}); err != nil {
		return err
	}
	for i := range nodes {
		name := Node(i + 1).Name()
		if err := l.wait("node "+name, name+"/kubelet", func() error {
			return l.kubectl(nil, "wait", "--for=condition=Ready", "--timeout=5s", "node/"+name)
		}); err != nil {
			return err
		}
	}
	return nil
}

func (l Lab) startNode(ca *authority, n Node) error {
	if err := nodeKeys(ca, n); err != nil {
		return err
	}
	if err := l.nodeFiles(n); err != nil {
		return err
	}
	return l.start(l.nodeSpec(n))
}

// start a machine that does not run.
func (l Lab) start(spec machine.Spec) error {
	dir := l.machine(spec.Name)
	if dir.Pid() != 0 {
		return nil
	}
	return l.Step("start machine "+spec.Name, func() error {
		if err := stop(dir); err != nil { // leftovers
			return err
		}
		return machine.Start(dir, spec)
	})
}

// Off switches a machine off, as a power failure would.
func (l Lab) Off(name string) error {
	dir, err := l.Machine(name)
	if err != nil {
		return err
	}
	return stop(dir)
}

// stop switches a machine off, and takes what its kubelet had of the machine below: loop devices over block volumes.
func stop(dir machine.Dir) error {
	if err := machine.Stop(dir); err != nil {
		return err
	}
	return loop.Free(dir.PrivatePath(kubeletPlugins + "kubernetes.io/csi/volumeDevices"))
}

// On switches a machine on that is off. One that is on stays so.
func (l Lab) On(name string) error {
	dir, err := l.Machine(name)
	if err != nil || dir.Pid() != 0 {
		return err
	}
	return machine.Restart(dir)
}

// wait until ready says so. log names the service whose log tells why not, as MACHINE/SERVICE.
func (l Lab) wait(what, log string, ready func() error) error {
	return l.waitFor(startTimeout, what, log, ready)
}

func (l Lab) waitFor(timeout time.Duration, what, log string, ready func() error) error {
	return l.Step("wait for "+what, func() error {
		deadline := time.Now().Add(timeout)
		for {
			err := ready()
			if err == nil {
				return nil
			}
			if time.Now().After(deadline) {
				name, service, _ := strings.Cut(log, "/")
				path := l.machine(name).LogPath(service)
				raw, _ := os.ReadFile(path)
				return fmt.Errorf("not ready in %s: %w\nthe end of %s:\n%s\nmend that and run the same again, or start anew after `make lab-down`",
					timeout, err, path, build.Tail(string(raw), 15))
			}
			time.Sleep(50 * time.Millisecond)
		}
	})
}

func answers(url string) error {
	response, err := (&http.Client{Timeout: time.Second}).Get(url)
	if err != nil {
		return err
	}
	response.Body.Close()
	return nil
}

// pushBinaries makes and pushes the images of single programs: reference below the registry to path.
func (l Lab) pushBinaries(paths map[string]string) error {
	return l.Step("push images of the cluster", func() error {
		for reference, path := range paths {
			img, err := build.Binary(path, "65532:65532")
			if err != nil {
				return err
			}
			if err := build.Push(img, Registry+"/"+reference); err != nil {
				return err
			}
		}
		return nil
	})
}

func (l Lab) kubectl(stdin []byte, args ...string) error {
	_, err := l.client(stdin, filepath.Join(l.Bin["kubernetes"], "kubectl"), args)
	return err
}

// Helm runs helm against the cluster.
func (l Lab) Helm(args ...string) error {
	_, err := l.client(nil, filepath.Join(l.Bin["helm"], "helm"), args)
	return err
}

// Troubles shows what the pods of a namespace do, what happened to them, and
// the ends of their logs, to somebody who waited for them in vain.
func (l Lab) Troubles(namespace string) string {
	var shown strings.Builder
	kubectl := func(args ...string) string {
		out, err := l.client(nil, filepath.Join(l.Bin["kubernetes"], "kubectl"), append([]string{"-n", namespace}, args...))
		if err != nil {
			return err.Error()
		}
		return out
	}
	show := func(args ...string) {
		fmt.Fprintf(&shown, "$ kubectl -n %s %s\n%s\n", namespace, strings.Join(args, " "), build.Tail(kubectl(args...), 30))
	}
	show("get", "pods", "-o", "wide")
	show("get", "events", "--sort-by=.metadata.creationTimestamp")
	for pod := range strings.FieldsSeq(kubectl("get", "pods", "-o", "name")) {
		show("logs", pod, "--all-containers", "--tail=20")
		show("logs", pod, "--all-containers", "--tail=20", "--previous")
	}
	return shown.String()
}

func (l Lab) client(stdin []byte, path string, args []string) (string, error) {
	cmd := exec.Command(path, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+l.Kubeconfig(), "HELM_CACHE_HOME="+l.Dir, "HELM_CONFIG_HOME="+l.Dir, "HELM_DATA_HOME="+l.Dir)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %s", filepath.Base(path), args[0], strings.TrimSpace(string(out)))
	}
	return strings.TrimSpace(string(out)), nil
}

// alone makes sure that no other lab is up here: names and addresses are the same in each.
func (l Lab) alone() error {
	owner, err := machine.Owner()
	if err == nil && owner != "" && owner != l.Dir {
		err = fmt.Errorf("another lab is up on this machine, in %s; take it down first, with its BERTH_CACHE=%s", owner, filepath.Dir(owner))
	}
	return err
}

// Down removes everything but the cache, whatever state it is in.
func (l Lab) Down() error {
	if err := l.alone(); err != nil {
		return err
	}
	for _, name := range l.machines() {
		if err := stop(l.machine(name)); err != nil {
			return err
		}
	}
	if err := loop.Free(l.volumes()); err != nil {
		return err
	}
	if err := machine.RemoveSwitch(); err != nil {
		return err
	}
	if err := machine.RemoveMountPoints(l.made()); err != nil {
		return err
	}
	if err := os.RemoveAll(l.Dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// SysResource tells whether processes here may do what CAP_SYS_RESOURCE allows,
// lower an oom_score_adj above all. Some virtual machines are run without it.
func SysResource() bool {
	set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	return err == nil && set == 1
}
