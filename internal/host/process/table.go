package process

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Table is the host's own processes. The functions of this package are its methods, for who takes them as an interface.
type Table struct{}

// Find is the function Find.
func (Table) Find(uuid string) ([]Process, error) { return Find(uuid) }

// PIDsByUUID is the function PIDsByUUID.
func (Table) PIDsByUUID() (map[string][]int, error) { return PIDsByUUID() }

// Terminate is Process.Terminate.
func (Table) Terminate(p Process, within time.Duration) error { return p.Terminate(within) }

// Kill is Process.Kill.
func (Table) Kill(p Process) error { return p.Kill() }

// VhostThreads is the function VhostThreads.
func (Table) VhostThreads(pid int) ([]int, error) { return VhostThreads(pid) }

// Watch calls ended, once and on a goroutine of its own, when the process has ended. It tells whether there is one.
func (Table) Watch(pid int, ended func()) (exists bool, err error) {
	h, err := Open(pid)
	if errors.Is(err, unix.ESRCH) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	go func() {
		_ = h.Wait() // an error is its end, too: nobody else closes it
		_ = h.Close()
		ended()
	}()
	return true, nil
}

// CopyOOMScore gives a process the oom_score_adj of another, as far as SetOOMScore may.
func (Table) CopyOOMScore(from, to int) error {
	score, err := OOMScore(from)
	if err != nil {
		return err
	}
	return SetOOMScore(to, score)
}
