// Command berth-guest is Berth's program in a guest: it runs what kubectl exec asks for, and tells the guest's exit code.
package main

import (
	"fmt"
	"os"

	"github.com/berth-dev/berth/internal/guesttools"
	"github.com/berth-dev/berth/internal/guesttools/tarball"
)

var version = "dev" // set by the linker

const usage = `usage: berth-guest             serve this guest's berth
       berth-guest exit CODE   tell the guest's exit code, 0 to 255, before it powers off
       berth-guest tar ...     tar, for guests that have none
       berth-guest version`

func main() {
	args := append(os.Args[1:], "", "")
	var err error
	switch command := args[0]; {
	case command == "" && len(os.Args) == 1:
		err = guesttools.Run(version)
	case command == "exit" && len(os.Args) == 3:
		err = guesttools.Exit(args[1])
	case command == "tar":
		os.Exit(tarball.Run(os.Args[2:], os.Stdin, os.Stdout, os.Stderr))
	case command == "version" && len(os.Args) == 2:
		fmt.Fprintln(os.Stdout, version)
	default:
		fmt.Fprintln(os.Stderr, usage)
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "berth-guest:", err)
		os.Exit(1)
	}
}
