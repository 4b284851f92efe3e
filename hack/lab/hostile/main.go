// Command hostile does in a guest of the lab what a guest that somebody broke into can do to its host.
//
//	hostile frames TARGET   send frames of every kind that may not leave the berth, and honest ones to the address TARGET
//	hostile dhcp COUNT      flood the DHCP server, every third time with what is no request, then ask for a lease
//	hostile channel COUNT   open and close the guest agent's channel
//	hostile agent           be a guest agent: tell lies, connection by connection, and the truth at last
//	hostile console KIB     write to the console without an end of line, and with every escape sequence
//
// It says on the console when it is done, or that it failed.
package main

import (
	"fmt"
	"os"
	"strconv"
)

func main() {
	args := append(os.Args[1:], "", "")
	if err := run(args[0], args[1]); err != nil {
		fmt.Printf("hostile: %s failed: %v\n", args[0], err)
		os.Exit(1)
	}
	fmt.Printf("hostile: %s done\n", args[0])
}

func run(verb, argument string) error {
	count, _ := strconv.Atoi(argument)
	switch verb {
	case "frames":
		return sendFrames(argument)
	case "dhcp":
		return floodDHCP(count)
	case "channel":
		return flapChannel(count)
	case "agent":
		return beAgent()
	case "console":
		return floodConsole(count)
	}
	return fmt.Errorf("%q is not among frames, dhcp, channel, agent, console", verb)
}
