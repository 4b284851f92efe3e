package main

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-dev/berth/hack/lab/build"
)

// systemdHost adds a host with systemd and cgroup v2 to a lab that is up, or removes it.
func (t *tool) systemdHost(args []string) error {
	flags := flag.NewFlagSet("systemd-host", flag.ExitOnError)
	release := flags.String("debian", build.Releases[0], "the host's release: "+strings.Join(build.Releases, ", "))
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.Arg(0) == "down":
		return t.lab.SystemdHostDown()
	case flags.NArg() > 0:
		return errors.New("usage: lab systemd-host [-debian RELEASE] [down]")
	case !slices.Contains(build.Releases, *release):
		return fmt.Errorf("-debian %s: give one of %s", *release, strings.Join(build.Releases, ", "))
	}
	if _, err := t.components(); err != nil {
		return err
	}
	kvm, err := t.cache.KVM()
	if err != nil {
		return err
	}
	system, err := t.cache.SystemdHost(*release)
	if err != nil {
		return err
	}
	return t.lab.SystemdHostUp(system, kvm)
}
