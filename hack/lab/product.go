package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-dev/berth/hack/lab/build"
	"github.com/berth-dev/berth/hack/lab/cluster"
)

// programs of Berth that run in the cluster, and as whom.
var programs = map[string]string{
	"berth-operator": "65532:65532",
	"berth-agent":    "0:0",
	"berth-shim":     "65532:65532",
}

// guestProgram is beside the agent in its image: guests get it.
const (
	agent        = "berth-agent"
	guestProgram = "berth-guest"
)

const (
	release         = "berth"
	namespace       = "berth-system"
	productRegistry = cluster.Registry + "/berth"
	// chartTimeout is ample for pulling three small images and starting them.
	chartTimeout = "120s"
)

// install builds Berth as the tree is now, and installs it or upgrades to it.
func (t *tool) install(kvm bool) error {
	paths := map[string]string{guestProgram: ""}
	for name := range programs {
		paths[name] = ""
	}
	for name := range paths {
		var err error
		if paths[name], err = t.cache.Program(t.root, "./cmd/"+name); err != nil {
			return err
		}
	}
	tag, err := t.pushProduct(t.root, paths)
	if err != nil {
		return err
	}
	acceleration := "Emulation"
	if kvm {
		acceleration = "KVM"
	}
	return t.cache.Step("install chart "+release, func() error {
		err := t.lab.Helm("upgrade", "--install", release, filepath.Join(t.root, "charts", "berth"),
			"--namespace", namespace, "--create-namespace", "--wait", "--timeout", chartTimeout,
			"--set", "image.registry="+productRegistry,
			"--set", "image.tag="+tag,
			"--set", "agent.acceleration="+acceleration,
			"--set", "agent.insecureRegistries={"+cluster.Registry+","+cluster.TestRegistry+"}",
			"--set", "agent.registries[0].host="+cluster.MirroredRegistry,
			"--set", "agent.registries[0].mirrors={https://"+cluster.TestWeb+"/mirror}",
			"--set-file", "agent.registries[0].ca="+t.lab.Authority(),
			"--set", fmt.Sprintf("agent.capabilities.sysResource=%t", cluster.SysResource()),
		)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, t.lab.Troubles(namespace))
		}
		return nil
	})
}

// release builds Berth of a commit, pushes its images, and prints exports that name its tree, which has its chart, and
// the images' tag.
func (t *tool) release(commit string) error {
	tree, err := t.cache.Release(t.root, commit)
	if err != nil {
		return err
	}
	paths := map[string]string{}
	for name := range programs {
		paths[name] = filepath.Join(tree, "bin", name)
	}
	guest := filepath.Join(tree, "bin", guestProgram)
	if _, err := os.Stat(guest); err == nil {
		paths[guestProgram] = guest
	} else if !errors.Is(err, fs.ErrNotExist) { // as with older releases
		return err
	}
	tag, err := t.pushProduct(tree, paths)
	if err != nil {
		return err
	}
	_, err = fmt.Printf("export LAB_RELEASE='%s'\nexport LAB_RELEASE_TAG='%s'\n", tree, tag)
	return err
}

// pushProduct makes images of the tree's programs, by their paths, and pushes them. It returns their tag.
func (t *tool) pushProduct(tree string, paths map[string]string) (string, error) {
	images := map[string]v1.Image{}
	for name, user := range programs {
		// What kubectl exec calls in the shim's image; releases without the list have no such names.
		names, err := os.ReadFile(filepath.Join(tree, "cmd", name, "names"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		if images[name], err = build.Binary(paths[name], user, strings.Fields(string(names))...); err != nil {
			return "", err
		}
	}
	if guest := paths[guestProgram]; guest != "" {
		var err error
		if images[agent], err = build.With(images[agent], guest); err != nil {
			return "", err
		}
	}
	tag, err := build.ContentTag(images)
	if err != nil {
		return "", err
	}
	return tag, t.cache.Step("push Berth's images", func() error {
		for name, img := range images {
			if err := build.Push(img, productRegistry+"/"+name+":"+tag); err != nil {
				return err
			}
		}
		return nil
	})
}

// failpoints builds the agent and the operator so that tests can crash them at any step, pushes them, and prints
// exports that name them.
func (t *tool) failpoints() error {
	tree, err := t.cache.Failpoints(t.root)
	if err != nil {
		return err
	}
	guest, err := t.cache.Program(t.root, "./cmd/"+guestProgram)
	if err != nil {
		return err
	}
	for name, variable := range map[string]string{agent: "LAB_AGENT_FAILPOINTS", "berth-operator": "LAB_OPERATOR_FAILPOINTS"} {
		path, err := t.cache.Program(tree, "./cmd/"+name, build.FailpointsTag)
		if err != nil {
			return err
		}
		img, err := build.Binary(path, programs[name])
		if err == nil && name == agent {
			img, err = build.With(img, guest)
		}
		if err != nil {
			return err
		}
		tag, err := build.ContentTag(map[string]v1.Image{name: img})
		if err != nil {
			return err
		}
		reference := fmt.Sprintf("%s/%s:failpoints-%s", productRegistry, name, tag)
		if err := build.Push(img, reference); err != nil {
			return err
		}
		if _, err := fmt.Printf("export %s='%s'\n", variable, reference); err != nil {
			return err
		}
	}
	return nil
}

// guests builds the test guests, and pushes them. It returns their references.
func (t *tool) pushGuests(dirs map[string]string) (map[string]string, error) {
	references := map[string]string{}
	for variable, dir := range dirs {
		img, err := build.LoadImage(dir)
		if err != nil {
			return nil, err
		}
		if err := build.LinkBlobs(dir, t.lab.Blobs()); err != nil {
			return nil, err
		}
		tag, err := build.ContentTag(map[string]v1.Image{variable: img})
		if err != nil {
			return nil, err
		}
		references[variable] = fmt.Sprintf("%s/lab/%s:%s", cluster.Registry, guestNames[variable], tag)
		if err := build.Push(img, references[variable]); err != nil {
			return nil, err
		}
	}
	return references, nil
}

// busyboxNames are the programs of busybox that its image has.
var busyboxNames = strings.Fields("blockdev cat chmod dd df ls mv rm sh sleep stat sync tail truncate")

// pushPrograms pushes what runs in pods that are no guests', and adds their references.
func (t *tool) pushPrograms(references map[string]string) error {
	tools, err := t.cache.Program(filepath.Join(t.root, "hack"), "./lab/tools")
	if err != nil {
		return err
	}
	for variable, program := range map[string]struct {
		path  string
		names []string
	}{
		build.ImageTools:   {tools, nil},
		build.ImageBusybox: {"/bin/busybox", busyboxNames},
	} {
		img, err := build.Binary(program.path, "65532:65532", program.names...)
		if err != nil {
			return err
		}
		tag, err := build.ContentTag(map[string]v1.Image{variable: img})
		if err != nil {
			return err
		}
		references[variable] = fmt.Sprintf("%s/lab/%s:%s", cluster.Registry, filepath.Base(program.path), tag)
		if err := build.Push(img, references[variable]); err != nil {
			return err
		}
	}
	return nil
}

var guestNames = map[string]string{build.ImageTiny: "tiny", build.ImageKernel: "kernel", build.ImageCloud: "cloud", build.ImageHostile: "hostile"}

// hasProduct tells whether the tree has all programs of Berth.
func (t *tool) hasProduct() (bool, error) {
	for name := range programs {
		_, err := os.Stat(filepath.Join(t.root, "cmd", name, "main.go"))
		if errors.Is(err, fs.ErrNotExist) {
			t.cache.Say("no cmd/%s in this tree: Berth is left out", name)
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}
