// A berth says how many processors its shim uses, so nothing is to watch the cgroup for that.

//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Command berth-shim is PID 1 of a berth's container, and its startup probe. It is also what kubectl exec and probes run
// beside it: called by another name than its own, it runs that name in the guest.
package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/berth-dev/berth/internal/shim"
	"github.com/berth-dev/berth/internal/shim/client"
)

const usage = `usage: berth-shim [run]
       berth-shim started [TIMEOUT]
       berth-shim exec [-u USER[:GROUP]] [-w DIR] [-e KEY=VALUE]... [-d] [--] COMMAND [ARG]...
       berth-shim probe [--liveness | --readiness | --startup] [--] COMMAND [ARG]...
       berth-shim reset | nmi
       NAME [ARG]...   by a link of that name: runs it in the guest; guest runs its arguments`

func main() {
	name, args := os.Args[0], os.Args[1:]
	switch name = name[strings.LastIndexByte(name, '/')+1:]; {
	case name == "guest":
		os.Exit(execute(append([]string{"exec", "--"}, args...)))
	case name != "berth-shim":
		os.Exit(execute(append([]string{"exec", "--", name}, args...)))
	case len(args) == 0 || args[0] == "run":
		os.Exit(run())
	case args[0] == "started":
		if err := started(args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "berth:", err)
			os.Exit(1)
		}
	default:
		os.Exit(execute(args))
	}
}

// execute runs a client and returns its exit code.
func execute(args []string) int {
	r, err := parse(args)
	if err != nil {
		fmt.Fprintf(os.Stderr, "berth: %v\n%s\n", err, usage)
		return client.CodeUsage
	}
	return r.Run()
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
	code, err := shim.Run()
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth:", err)
	}
	return code
}
