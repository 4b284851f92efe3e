package main

import (
	"errors"
	"flag"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-dev/berth/hack/lab/build"
)

// customer adds a host as Berth's customers have it to a lab that is up, or removes it.
func (t *tool) customer(args []string) error {
	flags := flag.NewFlagSet("customer", flag.ExitOnError)
	release := flags.String("debian", build.Releases[0], "the host's release: "+strings.Join(build.Releases, ", "))
	if err := flags.Parse(args); err != nil {
		return err
	}
	switch {
	case flags.Arg(0) == "down":
		return t.lab.CustomerDown()
	case flags.NArg() > 0:
		return errors.New("usage: lab customer [-debian RELEASE] [down]")
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
	system, err := t.cache.Customer(*release)
	if err != nil {
		return err
	}
	return t.lab.CustomerUp(system, kvm)
}
