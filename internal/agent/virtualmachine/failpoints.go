//go:build failpoints

package virtualmachine

import (
	"os"

	_ "go.etcd.io/gofail/runtime" // what gofail writes imports it
	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/guest/plan"
)

// crashAt ends the agent at a step of that name.
func crashAt(step plan.Step, name string) {
	if plan.Name(step) == name {
		crash()
	}
}

// crash ends the agent as kill -9 does.
func crash() {
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}
