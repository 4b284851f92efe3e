// A berth says how many processors its shim uses, so nothing is to watch the
// cgroup for that.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command berth-shim is PID 1 of a berth's container, and its startup probe.
package main

import (
	"fmt"
	"os"
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
		fmt.Fprintln(os.Stderr, "usage: berth-shim [run | started [TIMEOUT]]")
		os.Exit(2)
	}
}

// started waits until the guest runs, for the timeout in its argument, such as 25s; not at all by default.
func started(args []string) (err error) {
	var timeout time.Duration
	if len(args) > 0 {
		if timeout, err = time.ParseDuration(args[0]); err != nil {
			return err
		}
	}
	return shim.Started(timeout)
}

func run() int {
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
