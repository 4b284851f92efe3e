// The shim says itself how many processors it uses (see slim), so nothing is to
// watch its cgroup for that.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command berth-shim is PID 1 of a berth's container, and its startup probe.
package main

import (
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/berth-dev/berth/internal/shim"
)

func main() {
	command := "run"
	if len(os.Args) > 1 {
		command = os.Args[1]
	}
	switch command {
	case "run":
		os.Exit(run())
	case "started":
		if err := started(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "berth:", err)
			os.Exit(1)
		}
	default:
		fmt.Fprintln(os.Stderr, "usage: berth-shim [run | started [PATIENCE]]")
		os.Exit(2)
	}
}

// started waits for the guest as long as its argument says, such as 25s; not at all by default.
func started(args []string) (err error) {
	var patience time.Duration
	if len(args) > 0 {
		if patience, err = time.ParseDuration(args[0]); err != nil {
			return err
		}
	}
	return shim.Started(patience)
}

func run() int {
	slim()
	code, err := shim.Run(shim.Options{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		TerminationLog: "/dev/termination-log",
		ResolvConf:     "/etc/resolv.conf",
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth:", err)
	}
	return code
}

// slim keeps the shim small on large machines: before main, Go's runtime takes
// 30 kB for each processor that it may use, and only its environment tells it
// how many. So the shim starts once more, in the same process.
func slim() {
	debug.SetGCPercent(25)
	const processors = "GOMAXPROCS"
	if os.Getenv(processors) != "" {
		return
	}
	err := syscall.Exec("/proc/self/exe", os.Args, append(os.Environ(), processors+"=2"))
	fmt.Fprintln(os.Stderr, "berth: starting with less memory:", err) // and go on with more
}
