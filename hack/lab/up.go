package main

import (
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"sync"

	"github.com/berth-dev/berth/hack/lab/cluster"
)

func (t *tool) up(args []string) error {
	flags := flag.NewFlagSet("up", flag.ExitOnError)
	nodes := flags.Int("nodes", 2, "number of nodes")
	noChart := flags.Bool("no-chart", false, "leave Berth out: only the cluster")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *nodes < 1 || *nodes > cluster.MaxNodes {
		return fmt.Errorf("-nodes %d: give a number from 1 to %d", *nodes, cluster.MaxNodes)
	}
	pause, err := t.components()
	if err != nil {
		return err
	}

	// Guests are built while the cluster starts: they need no part of it.
	var guests map[string]string
	var kvm bool
	var guestErr, clusterErr error
	var group sync.WaitGroup
	group.Go(func() {
		if kvm, guestErr = t.cache.KVM(); guestErr == nil {
			guests, guestErr = t.guests()
		}
	})
	group.Go(func() {
		clusterErr = t.lab.Up(*nodes, map[string]string{
			"lab/pause:1":   pause,
			"lab/coredns:1": filepath.Join(t.lab.Bin["coredns"], "coredns"),
		})
	})
	group.Wait()
	if err := errors.Join(clusterErr, guestErr); err != nil {
		return err
	}
	references, err := t.pushGuests(guests)
	if err != nil {
		return err
	}
	if err := t.pushPrograms(references); err != nil {
		return err
	}
	if err := t.writeEnv(references, kvm); err != nil {
		return err
	}
	whole, err := t.hasProduct()
	if err != nil {
		return err
	}
	if whole && !*noChart {
		if err := t.install(kvm); err != nil {
			return err
		}
	}
	t.cache.Say(`the lab is up; look around with: eval "$(make -s lab-env)"`)
	return nil
}

// components builds what a cluster is made of, and returns the path of the pause program.
func (t *tool) components() (string, error) {
	if err := t.cache.Packages(); err != nil {
		return "", err
	}
	hack := filepath.Join(t.root, "hack")
	bin, err := t.cache.Components(filepath.Join(hack, "lab", "components"))
	if err != nil {
		return "", err
	}
	t.lab.Bin = bin
	if t.lab.Driver, err = t.cache.Program(hack, "./lab/csi"); err != nil {
		return "", err
	}
	return t.cache.Program(hack, "./lab/pause")
}

// build fills the cache and starts nothing.
func (t *tool) build() error {
	if _, err := t.components(); err != nil {
		return err
	}
	_, err := t.guests()
	return err
}

// guests builds the test guests, and returns their images' directories.
func (t *tool) guests() (map[string]string, error) {
	programs, err := t.hostile()
	if err != nil {
		return nil, err
	}
	return t.cache.Guests(programs)
}

// hostile builds the programs of the hostile guest: one that attacks, and the one by which it can be reached.
func (t *tool) hostile() ([]string, error) {
	attacks, err := t.cache.Program(filepath.Join(t.root, "hack"), "./lab/hostile")
	if err != nil {
		return nil, err
	}
	reached, err := t.cache.Program(t.root, "./cmd/"+guestProgram)
	return []string{attacks, reached}, err
}
