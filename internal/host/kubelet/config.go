package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/berth-dev/berth/internal/host/namespace"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Config is what of kubelet's configuration (kubelet.config.k8s.io/v1beta1, KubeletConfiguration) matters to guests.
type Config struct {
	// ShutdownGrace is how long pods may take to end when the host shuts down, ShutdownGraceCritical how much of that
	// belongs to critical ones; 0 is that they are not waited for.
	ShutdownGrace         time.Duration `yaml:"shutdownGracePeriod"`
	ShutdownGraceCritical time.Duration `yaml:"shutdownGracePeriodCriticalPods"`
	// SingleProcessOOMKill: of a container that is out of memory one process is killed, and not all.
	SingleProcessOOMKill bool `yaml:"singleProcessOOMKill"`
	// PodPIDs limits the processes and threads of a pod; 0 is no limit.
	PodPIDs int64 `yaml:"podPidsLimit"`
}

// Read reads the configuration of the kubelet whose process that is, with what its arguments say instead.
func Read(pid int, args []string) (Config, error) {
	root := fmt.Sprintf("/proc/%d/root", pid)
	var files [][]byte
	for _, path := range paths(root, args) {
		text, err := read(root, path)
		if err != nil {
			return Config{}, fmt.Errorf("reading kubelet's configuration: %w", err)
		}
		files = append(files, text)
	}
	return parse(args, files)
}

// paths are the files below root that the arguments name, in the order in which each overrules those before.
func paths(root string, args []string) []string {
	var list []string
	if file := flag(args, "config"); file != "" {
		list = append(list, file)
	}
	if dir := flag(args, "config-dir"); dir != "" {
		found, _ := filepath.Glob(filepath.Join(root, dir, "*.conf")) // the pattern is good
		slices.Sort(found)
		for _, path := range found {
			list = append(list, strings.TrimPrefix(path, root))
		}
	}
	return list
}

// flag is the last value of a command line's flag, "" if it is not there.
func flag(args []string, name string) (value string) {
	for i, arg := range args {
		key, v, joined := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-"), "=")
		switch {
		case key != name || !strings.HasPrefix(arg, "-"):
		case joined:
			value = v
		case i+1 < len(args):
			value = args[i+1]
		}
	}
	return value
}

// read reads a file as kubelet sees it: a link in its path leads to below kubelet's root, and not to ours.
func read(root, path string) ([]byte, error) {
	f, err := namespace.Open(root, path, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// parse merges the files, each over those before, and the command line over all.
func parse(args []string, files [][]byte) (Config, error) {
	var c struct {
		Config     `yaml:",inline"`
		ByPriority []struct {
			Priority int64 `yaml:"priority"`
			Seconds  int64 `yaml:"shutdownGracePeriodSeconds"`
		} `yaml:"shutdownGracePeriodByPodPriority"`
	}
	for _, text := range files {
		if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&c); err != nil && !errors.Is(err, io.EOF) {
			return Config{}, fmt.Errorf("reading kubelet's configuration: %w", err)
		}
	}
	for _, p := range c.ByPriority { // overrules the two others; system-critical pods begin at 2 000 000 000
		grace := time.Duration(p.Seconds) * time.Second
		c.ShutdownGrace += grace
		if p.Priority >= 2_000_000_000 {
			c.ShutdownGraceCritical += grace
		}
	}
	if limit := flag(args, "pod-max-pids"); limit != "" {
		var err error
		if c.PodPIDs, err = strconv.ParseInt(limit, 10, 64); err != nil {
			return Config{}, fmt.Errorf("reading kubelet's -pod-max-pids: %w", err)
		}
	}
	c.PodPIDs = max(0, c.PodPIDs)
	return c.Config, nil
}
