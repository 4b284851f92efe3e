// Command pause says that it is ready, does nothing until it is asked to end, and then exits with 3.
package main

import (
	"os"
	"os/signal"
	"syscall"
)

func main() {
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM)
	_, _ = os.Stdout.WriteString("ready\n")
	<-asked
	os.Exit(3)
}
