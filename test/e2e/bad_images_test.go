package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/test/badregistry"
	"github.com/berth-dev/berth/test/env"
)

// misbehaving is at the address to which the lab's agents speak plain HTTP, while a test listens.
var misbehaving = badregistry.New()

var listeners struct {
	sync.Mutex
	n   int
	end func()
}

// listen serves the registry until the test and its subtests are over, and others that listen.
func listen(t testing.TB) {
	t.Helper()
	address := env.Need(t, "LAB_TEST_REGISTRY", "a lab; make lab-up, then eval \"$(make -s lab-env)\"")
	listeners.Lock()
	defer listeners.Unlock()
	if listeners.n == 0 {
		listener, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatalf("serving a registry to the lab: %v", err)
		}
		listeners.end = misbehaving.Serve(listener)
	}
	listeners.n++
	t.Cleanup(func() {
		listeners.Lock()
		defer listeners.Unlock()
		if listeners.n--; listeners.n == 0 {
			listeners.end()
		}
	})
}

// newDisk is a raw disk of 1 MiB that no node has seen.
func newDisk(l *lab) string {
	return (l.Name() + l.ns + strings.Repeat("\x00", 1<<20))[:1<<20]
}

// imaged is a guest with a disk from an image of the misbehaving registry, and more lines of YAML.
func imaged(repository, more string) string {
	return tiny + fmt.Sprintf("  disks:\n  - name: data\n    image: %s\n", imageOf(repository)) + more
}

func imageOf(repository string) string { return os.Getenv("LAB_TEST_REGISTRY") + "/" + repository }

// replace changes one field of the VirtualMachine tiny.
func (l *lab) replace(path, value string) {
	l.Helper()
	l.kubectl("", "patch", "vm", "tiny", "--type=json", "-p", fmt.Sprintf(`[{"op":"replace","path":%q,"value":%q}]`, path, value))
}

// TestRegistryAway has no registry at the address where others have one that misbehaves, so it comes before them.
func TestRegistryAway(t *testing.T) {
	l := startAlone(t)
	l.recovers(bad{
		manifest:  imaged(l.ns+"/away", ""),
		condition: v1alpha1.ConditionDisksReady, reason: v1alpha1.ReasonRegistryUnreachable, says: "retrying",
		repair: func(l *lab) {
			misbehaving.Push(l.ns+"/away", badregistry.Disk(newDisk(l)))
			listen(l)
		},
	})
}

func TestBadImages(t *testing.T) {
	t.Parallel()
	listen(t)
	const disks = v1alpha1.ConditionDisksReady
	good := func(repository string) func(l *lab) {
		return func(l *lab) { misbehaving.Push(l.ns+repository, badregistry.Disk(newDisk(l))) }
	}
	behaves := func(repository string) func(l *lab) {
		return func(l *lab) { misbehaving.Repair(l.ns + repository) }
	}
	holds := func(content func(l *lab) string) func(l *lab) {
		return func(l *lab) { misbehaving.Push(l.ns+"/disk", badregistry.Disk(content(l))) }
	}
	for _, c := range []struct {
		bad
		repository, more string
	}{
		{repository: "/stall", bad: bad{ // first: it takes long
			name: "from a registry that stalls", before: good("/stall"),
			reason: v1alpha1.ReasonRegistryUnreachable, says: "no data for", repair: behaves("/stall"),
		}},
		{repository: "/missing", bad: bad{
			name:   "missing",
			reason: v1alpha1.ReasonImageNotFound, says: "correct the name, or push it", repair: good("/missing"),
		}},
		{repository: "/cut", bad: bad{
			name: "from a registry that is cut off at any byte", before: good("/cut"),
			reason: v1alpha1.ReasonRegistryUnreachable, says: "retrying", repair: behaves("/cut"),
		}},
		{repository: "/corrupt", bad: bad{
			name: "other than its digest", before: good("/corrupt"),
			reason: v1alpha1.ReasonImageDigestMismatch, says: "push the image again", repair: behaves("/corrupt"),
		}},
		{repository: "/disk", bad: bad{
			name: "no disk", before: holds(func(*lab) string { return "#!/bin/sh\n" }),
			reason: v1alpha1.ReasonImageNotDisk, says: "less than a sector", repair: good("/disk"),
		}},
		{repository: "/disk", bad: bad{
			name: "qcow2 with a backing file", before: holds(func(l *lab) string { return qcow2(l, "-b", "/etc/passwd", "-F", "raw") }),
			reason: v1alpha1.ReasonImageUnsafe, says: "has a backing file: flatten it", repair: good("/disk"),
		}},
		{repository: "/disk", bad: bad{
			name: "qcow2 with a data file", before: holds(func(l *lab) string { return qcow2(l, "-o", "data_file=data") }),
			reason: v1alpha1.ReasonImageUnsafe, says: "external data file: flatten it", repair: good("/disk"),
		}},
		{repository: "/disk", more: "    size: 1Mi\n", bad: bad{
			name: "larger than its disk", before: holds(func(l *lab) string { return newDisk(l) + newDisk(l) }),
			reason: v1alpha1.ReasonDiskTooSmall, says: "give it a larger size",
			repair: func(l *lab) { l.replace("/spec/disks/0/size", "4Mi") },
		}},
		{repository: "/mistyped", bad: bad{
			name: "mistyped", before: good("/disk"),
			reason: v1alpha1.ReasonImageNotFound, says: "correct the name",
			repair: func(l *lab) { l.replace("/spec/disks/0/image", imageOf(l.ns+"/disk")) },
		}},
		{repository: "/never", more: "  imagePullPolicy: Never\n", bad: bad{
			name: "not on the node, and never to be pulled", before: good("/never"),
			reason: v1alpha1.ReasonImageNotFound, says: "imagePullPolicy is Never",
			repair: func(l *lab) { l.patch("tiny", `{"imagePullPolicy":"IfNotPresent"}`) },
		}},
		{repository: "/private", bad: bad{
			name: "private, without a pull secret", before: good("/private"),
			reason: v1alpha1.ReasonImageUnauthorized, says: "name a Secret in imagePullSecrets",
			repair: func(l *lab) {
				pullSecret(l, badregistry.Password)
				l.patch("tiny", `{"imagePullSecrets":[{"name":"pull"}]}`)
			},
		}},
		{repository: "/private", more: "  imagePullSecrets: [{name: pull}]\n", bad: bad{
			name: "private, with a pull secret that is missing", before: good("/private"),
			reason: v1alpha1.ReasonSecretMissing, says: "create it with kubectl create secret docker-registry",
			repair: func(l *lab) { pullSecret(l, badregistry.Password) },
		}},
		{repository: "/private", more: "  imagePullSecrets: [{name: pull}]\n", bad: bad{
			name:   "private, with a wrong pull secret",
			before: func(l *lab) { good("/private")(l); pullSecret(l, "wrong") },
			reason: v1alpha1.ReasonImageUnauthorized, says: "correct the Secret",
			repair: func(l *lab) { l.kubectl("", "delete", "secret", "pull"); pullSecret(l, badregistry.Password) },
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := start(t)
			c.condition, c.manifest = disks, imaged(l.ns+c.repository, c.more)
			l.recovers(c.bad)
		})
	}
}

func pullSecret(l *lab, password string) {
	l.Helper()
	l.kubectl("", "create", "secret", "docker-registry", "pull",
		"--docker-server="+os.Getenv("LAB_TEST_REGISTRY"), "--docker-username=robot", "--docker-password="+password)
}

// qcow2 is a disk as qemu-img makes it.
func qcow2(l *lab, args ...string) string {
	l.Helper()
	path := filepath.Join(l.TempDir(), "disk.qcow2")
	cmd := exec.CommandContext(l.Context(), "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, args...), path, "1M")...)
	cmd.Dir = filepath.Dir(path)
	if out, err := cmd.CombinedOutput(); err != nil {
		l.Fatalf("%v: %s", err, out)
	}
	raw, err := os.ReadFile(path)
	if err != nil {
		l.Fatal(err)
	}
	return string(raw)
}
