// Command lab brings up a real Kubernetes cluster with KVM hosts on one bare
// Debian machine, and removes all of it again.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/berth-dev/berth/hack/lab/build"
	"github.com/berth-dev/berth/hack/lab/cluster"
	"github.com/berth-dev/berth/hack/lab/machine"
	"github.com/berth-dev/berth/hack/lab/registry"
)

const usage = `usage: lab [-root DIR] VERB

  up [-nodes N] [-no-chart]         bring up what is not up, install this tree
  systemd-host [-debian RELEASE] [down] add a host with systemd and cgroup v2 (slow), or remove it
  build                             fill the cache, start nothing
  down                              remove everything but the cache
  env                               print exports for eval
  parts                             build what tests run against, print exports for eval
  chromium                          install a browser, which TestScreenInBrowser drives
  failpoints                        build and push Berth with failpoints, print exports for eval
  release COMMIT                    build and push Berth as it was at a commit, print exports for eval
  exec MACHINE -- COMMAND...        run a command in a machine
  service VERB MACHINE SERVICE      start, stop or restart one service
  off MACHINE                       power failure
  on MACHINE                        power again
`

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "lab:", err)
		os.Exit(1)
	}
}

func run() error {
	flags := flag.NewFlagSet("lab", flag.ExitOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	root := flags.String("root", ".", "the clone of Berth's repository")
	if err := flags.Parse(os.Args[1:]); err != nil {
		return err
	}
	verb, args := flags.Arg(0), flags.Args()
	// What a lab's own machines run needs none of the rest.
	switch verb {
	case machine.InitVerb:
		return machine.Init(machine.Dir(args[1]))
	case cluster.RegistryVerb:
		return registry.Serve(args[1], args[2])
	}
	t, err := openTool(*root)
	if err != nil {
		return err
	}
	switch {
	case verb == "up":
		return t.locked(func() error { return t.up(args[1:]) })
	case verb == "systemd-host":
		return t.locked(func() error { return t.systemdHost(args[1:]) })
	case verb == "build" && len(args) == 1:
		return t.build()
	case verb == "down" && len(args) == 1:
		return t.locked(t.lab.Down)
	case verb == "env" && len(args) == 1:
		return t.env()
	case verb == "parts" && len(args) == 1:
		return t.parts()
	case verb == "chromium" && len(args) == 1:
		return t.cache.Chromium()
	case verb == "failpoints" && len(args) == 1:
		return t.failpoints()
	case verb == "release" && len(args) == 2:
		return t.release(args[1])
	case verb == "exec" && len(args) > 2:
		dir, err := t.lab.Machine(args[1])
		if err != nil {
			return err
		}
		command := args[2:]
		if command[0] == "--" {
			command = command[1:]
		}
		return machine.Exec(dir, command)
	case verb == "service" && len(args) == 4:
		dir, err := t.lab.Machine(args[2])
		if err != nil {
			return err
		}
		return dir.Service(args[1], args[3])
	case verb == "off" && len(args) == 2:
		return t.locked(func() error { return t.lab.Off(args[1]) })
	case verb == "on" && len(args) == 2:
		return t.locked(func() error { return t.lab.On(args[1]) })
	default:
		flags.Usage()
		return errors.New("nothing done")
	}
}

// tool is this program with where things are.
type tool struct {
	root  string
	cache build.Cache
	lab   cluster.Lab
}

func openTool(root string) (*tool, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	dir := os.Getenv("BERTH_CACHE")
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return nil, err
		}
		dir = filepath.Join(user, "berth")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	progress := &build.Progress{Out: os.Stderr}
	return &tool{
		root:  root,
		cache: build.Cache{Dir: dir, Progress: progress},
		// One lab for each machine, whatever clone it is driven from.
		lab: cluster.Lab{Dir: filepath.Join(dir, "lab"), Self: self, Progress: progress},
	}, nil
}

// locked keeps two labs from being changed at once.
func (t *tool) locked(f func() error) error {
	if os.Geteuid() != 0 {
		return errors.New("a lab needs root: it makes namespaces, mounts and devices")
	}
	if err := os.MkdirAll(t.cache.Dir, 0o755); err != nil {
		return err
	}
	lock, err := os.OpenFile(t.lab.Dir+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("waiting for another lab command: %w", err)
	}
	return f()
}
