package volume

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"
)

const crashEnv = "BERTH_VOLUME_CRASH"

// TestKilledAtAnyMoment kills a process that attaches, records and detaches a file system and a device, over and over.
// Whatever it leaves, the next one attaches both, or detaches both, and nothing stays.
func TestKilledAtAnyMoment(t *testing.T) {
	if at := os.Getenv(crashEnv); at != "" {
		attachForEver(t, at)
	}
	r := newRig(t)
	_, rdev := loop(t)
	shims := make([]int, 2)
	paths := make([]string, 2)
	shims[0], paths[0] = r.berth(r.mounting(r.fileSystem("data")))
	shims[1], paths[1] = r.berth(nodeOf(rdev))
	at := fmt.Sprint(r.volumes().dir, " ", r.pid, " ", shims[0], " ", shims[1], " ", paths[0])
	rounds := 100
	if testing.Short() {
		rounds = 10
	}
	seen := map[string]int{}
	for round := range rounds {
		child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestKilledAtAnyMoment$")
		child.Env = append(os.Environ(), crashEnv+"="+at)
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(make([]byte, 1)); err != nil { // it works now
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rand.IntN(3_000)) * time.Microsecond) // the moment is the input, not a wait
		_ = child.Process.Kill()
		_ = child.Wait()
		v := r.volumes()
		left, err := v.Attached(uidA)
		if err != nil {
			t.Fatal(err)
		}
		uids, err := v.List()
		if err != nil {
			t.Fatal(err)
		}
		seen[fmt.Sprint(len(uids), " guest, ", len(left), " attached")]++
		if round%2 == 0 {
			for i, vol := range crashVolumes(paths[0]) {
				if err := v.Attach(t.Context(), guestA, shims[i], vol); err != nil {
					t.Fatal(err)
				}
			}
			if all, err := v.Attached(uidA); len(all) != 2 || err != nil {
				t.Errorf("attached are %+v, %v", all, err)
			}
		}
		if err := v.Detach(t.Context(), uidA); err != nil {
			t.Fatal(err)
		}
		r.expectNothing(v)
	}
	t.Logf("found: %v", seen)
	if len(seen) < 2 {
		t.Error("the child was always killed at one point, which proves nothing")
	}
}

func crashVolumes(path string) []Volume {
	return []Volume{{Disk: "data", Path: path}, {Disk: "log", Path: path, Block: true}}
}

func attachForEver(t *testing.T, at string) {
	var dir, path string
	var host int
	var shims [2]int
	if _, err := fmt.Sscan(at, &dir, &host, &shims[0], &shims[1], &path); err != nil {
		t.Fatal(err)
	}
	v := New(dir, func(context.Context) (int, error) { return host, nil })
	fmt.Print(strconv.Itoa(os.Getpid()))
	for {
		for i, vol := range crashVolumes(path) {
			if err := v.Attach(t.Context(), guestA, shims[i], vol); err != nil {
				t.Fatal(err)
			}
			if err := v.RecordMade(uidA, vol.Disk, Made{Size: 1}); err != nil {
				t.Fatal(err)
			}
		}
		if err := v.Detach(t.Context(), uidA); err != nil {
			t.Fatal(err)
		}
	}
}
