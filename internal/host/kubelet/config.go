package kubelet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// ErrAbsent says that no kubelet of a kind that we know runs on this host. Distributions that have it inside of a
// process of their own (k3s, RKE2) are such.
var ErrAbsent = errors.New("no process named kubelet on this host")

// maxFile bounds a configuration file, in bytes.
const maxFile = 1 << 20

// Config is what of kubelet's configuration (kubelet.config.k8s.io/v1beta1, KubeletConfiguration) matters to guests.
type Config struct {
	// ShutdownGrace is how long pods may take to end when the host shuts down, ShutdownGraceCritical how much of that
	// belongs to critical ones; 0 is that they are not waited for.
	ShutdownGrace, ShutdownGraceCritical time.Duration
	// SingleProcessOOMKill: of a container that is out of memory one process is killed, and not all.
	SingleProcessOOMKill bool
	// PodPIDs limits the processes and threads of a pod; 0 is no limit.
	PodPIDs int64
}

// Read finds kubelet and reads its configuration, with what its command line says instead.
func Read() (Config, error) {
	pid, args, err := findProcess()
	if err != nil {
		return Config{}, err
	}
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

// findProcess returns kubelet's process and its arguments.
func findProcess() (pid int, args []string, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, nil, fmt.Errorf("listing processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		comm, err := os.ReadFile(filepath.Join("/proc", e.Name(), "comm"))
		if err != nil || strings.TrimSpace(string(comm)) != "kubelet" || nested(pid) {
			continue
		}
		raw, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil || len(raw) == 0 {
			continue
		}
		return pid, strings.Split(strings.TrimSuffix(string(raw), "\x00"), "\x00"), nil
	}
	return 0, nil, ErrAbsent
}

// nested tells whether a process lives in a PID namespace below ours: a pod's, which may call itself kubelet.
func nested(pid int) bool {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(status), "\nNSpid:")
	line, _, _ := strings.Cut(rest, "\n")
	return len(strings.Fields(line)) > 1
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
	dir, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{
		Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxFile))
}

// parse merges the files, each over those before, and the command line over all.
func parse(args []string, files [][]byte) (Config, error) {
	var c struct {
		ShutdownGrace         string `yaml:"shutdownGracePeriod"`
		ShutdownGraceCritical string `yaml:"shutdownGracePeriodCriticalPods"`
		ByPriority            []struct {
			Priority int64 `yaml:"priority"`
			Seconds  int64 `yaml:"shutdownGracePeriodSeconds"`
		} `yaml:"shutdownGracePeriodByPodPriority"`
		SingleProcessOOMKill bool  `yaml:"singleProcessOOMKill"`
		PodPIDs              int64 `yaml:"podPidsLimit"`
	}
	for _, text := range files {
		if err := yaml.NewDecoder(bytes.NewReader(text)).Decode(&c); err != nil && !errors.Is(err, io.EOF) {
			return Config{}, fmt.Errorf("reading kubelet's configuration: %w", err)
		}
	}
	out := Config{SingleProcessOOMKill: c.SingleProcessOOMKill, PodPIDs: max(0, c.PodPIDs)}
	for _, d := range []struct {
		text string
		into *time.Duration
	}{{c.ShutdownGrace, &out.ShutdownGrace}, {c.ShutdownGraceCritical, &out.ShutdownGraceCritical}} {
		if d.text == "" {
			continue
		}
		v, err := time.ParseDuration(d.text)
		if err != nil {
			return Config{}, fmt.Errorf("reading kubelet's configuration: %w", err)
		}
		*d.into = v
	}
	for _, p := range c.ByPriority { // overrules the two others; system-critical pods begin at 2 000 000 000
		grace := time.Duration(p.Seconds) * time.Second
		out.ShutdownGrace += grace
		if p.Priority >= 2_000_000_000 {
			out.ShutdownGraceCritical += grace
		}
	}
	if limit := flag(args, "pod-max-pids"); limit != "" {
		n, err := strconv.ParseInt(limit, 10, 64)
		if err != nil {
			return Config{}, fmt.Errorf("reading kubelet's -pod-max-pids: %w", err)
		}
		out.PodPIDs = max(0, n)
	}
	return out, nil
}
