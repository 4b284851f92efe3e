package main

import (
	"flag"
	"fmt"
	"path/filepath"

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
	if err := t.cache.Packages(); err != nil {
		return err
	}
	hack := filepath.Join(t.root, "hack")
	bin, err := t.cache.Components(filepath.Join(hack, "lab", "components"))
	if err != nil {
		return err
	}
	pause, err := t.cache.Program(hack, "./lab/pause")
	if err != nil {
		return err
	}
	t.lab.Bin = bin
	if err := t.lab.Up(*nodes, map[string]string{
		"lab/pause:1":   pause,
		"lab/coredns:1": filepath.Join(bin["coredns"], "coredns"),
	}); err != nil {
		return err
	}
	_ = noChart
	return t.writeEnv(nil)
}

