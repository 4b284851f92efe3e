package e2e

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
)

// places is how many commands run in a guest at once.
const places = 32

// small is a guest with little memory.
var small = strings.Replace(reached, "96Mi", "64Mi", 1)

// crowded is a guest into which many reach at once.
type crowded struct {
	*lab
	berth *corev1.Pod
	idle  string // what there is in it before anybody came
}

func (l *lab) crowded() *crowded {
	l.Helper()
	l.apply(small)
	l.vm("tiny", "to be Ready, and have its guest program answer", func(vm *v1alpha1.VirtualMachine) bool { return isReady(vm) && hasTools(vm) })
	c := &crowded{lab: l, berth: l.pod("tiny", "to be there", exists)}
	c.idle = c.inside()
	return c
}

// inside is what there is of commands in the container, and then in the guest, where the one that tells of it counts.
func (c *crowded) inside() string {
	c.Helper()
	processes := c.container()
	files, err := os.ReadDir("/proc/" + c.processOf("berth-shim", c.berth) + "/fd")
	if err != nil {
		c.Fatal(err)
	}
	// At the end of the command's input the guest program has closed it: a descriptor less, at that moment or another.
	told := c.exec("tiny", nil, "sh", "-c",
		`cat >/dev/null; echo "guest: $(ls /proc/$(pidof berth-guest)/fd | wc -l) descriptors, $(grep -l "^PPid:.$(pidof berth-guest)$" /proc/[0-9]*/status | wc -l) commands"`)
	return fmt.Sprintf("container: %v, %d descriptors; %s%s", processes, len(files), told.out, told.err)
}

// container counts the processes in the berth, by their names.
func (c *crowded) container() map[string]int {
	names := map[string]int{}
	groups, _ := filepath.Glob("/proc/[0-9]*/cgroup") // fails only for a bad pattern
	for _, path := range groups {
		if group, _ := os.ReadFile(path); strings.Contains(string(group), string(c.berth.UID)) {
			name, _ := os.ReadFile(filepath.Join(filepath.Dir(path), "comm"))
			names[strings.TrimSpace(string(name))]++
		}
	}
	return names
}

// isUnharmed: guest and container are those of the beginning, and nothing was killed for want of memory in either.
func (c *crowded) isUnharmed() {
	c.Helper()
	vm := c.vm("tiny", "to run", runs)
	pod := c.pod("tiny", "to be there", exists)
	if n := pod.Status.ContainerStatuses[0].RestartCount; n != 0 || pod.UID != c.berth.UID || vm.Status.LastExit != nil || vm.Status.Resets != 0 {
		c.Errorf("the guest was restarted: %d times, %d resets, in berth %s, was in %s: %+v", n, vm.Status.Resets, pod.UID, c.berth.UID, vm.Status.LastExit)
	}
	if console := c.kubectl("", "logs", "tiny"); strings.Contains(console, "Out of memory") || strings.Contains(console, "oom-kill") {
		c.Errorf("the guest ran out of memory:\n%s", console)
	}
}

// within has a complaint end in the time that is promised for it: it is made again until then, and once after.
func within(t testing.TB, promised time.Duration, complaint func() string) {
	t.Helper()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(promised); ; <-tick.C {
		isLast := time.Now().After(end)
		told := complaint()
		if told == "" {
			return
		}
		if isLast {
			t.Errorf("after %v: %s", promised, told)
			return
		}
	}
}

// TestExecCrowd has as many commands run in a guest as may. Each has its own bytes, one that is not read holds up
// nobody else, and nothing is left of any.
func TestExecCrowd(t *testing.T) {
	c := start(t).crowded()
	var sessions [places]*session
	for i := range sessions {
		sessions[i] = c.session("tiny", "sh")
	}
	for _, word := range []string{"here", "again"} { // so all are there, and none was silent for long
		for _, s := range sessions {
			s.say("echo " + word)
		}
		for _, s := range sessions {
			s.await(word + "\n")
		}
	}
	t.Log("one more")
	if got := c.exec("tiny", nil, "true"); got.code != 126 || !strings.Contains(got.err, `32 commands run in this guest already: end one; the oldest, "sh", runs for `) {
		t.Errorf("%+v", got)
	}

	t.Log("one that is not read")
	stopped, others := sessions[0], sessions[1:]
	stopped.say("exec yes")
	stopped.mu.Lock()
	others[0].say(`until grep -q pipe /proc/$(pidof yes)/wchan; do sleep 1; done; echo stuck`)
	others[0].await("stuck\n")

	t.Log("1 MB each, there and back")
	for _, s := range others {
		s.say("echo cat; exec cat")
	}
	var sent [places - 1][]byte
	for i, s := range others {
		s.await("cat\n")
		sent[i] = make([]byte, 1e6)
		_, _ = rand.Read(sent[i])
	}
	begun := time.Now()
	for i, s := range others {
		go func() {
			_, _ = s.in.Write(sent[i])
			_ = s.in.(io.Closer).Close()
		}()
	}
	for i, s := range others {
		code := codeOf(t, <-s.done)
		if _, got, _ := strings.Cut(s.String(), "cat\n"); code != 0 || !bytes.Equal([]byte(got), sent[i]) {
			t.Errorf("number %d ended with %d and has %d bytes: the same are %t", i+1, code, len(got), bytes.Equal([]byte(got), sent[i]))
		}
	}
	t.Logf("all had theirs after %v", time.Since(begun))
	stopped.mu.Unlock()
	c.exec("tiny", nil, "killall", "yes")
	if code := codeOf(t, <-stopped.done); code != 143 {
		t.Errorf("the one that was not read ended with %d", code)
	}
	within(t, 10*time.Second, func() string {
		if now := c.inside(); now != c.idle {
			return "there was " + c.idle + "and is " + now
		}
		return ""
	})
	c.isUnharmed()
}

// TestExecClientsKilled kills kubectls: as many as there are places as soon as their commands run, more at any moment.
// Kubernetes leaves behind what they ran, which must not keep others out for longer than a minute.
func TestExecClientsKilled(t *testing.T) {
	c := start(t).crowded()
	clients, seed := deep(40, 200, 200), time.Now().UnixNano()
	t.Logf("%d clients, seed %d", clients, seed)
	random := mathrand.New(mathrand.NewPCG(uint64(seed), 0))
	commands := []string{"exec sleep 100000", "exec yes"} // cat, say, would end with its input
	var all sync.WaitGroup
	atOnce := make(chan struct{}, 8)
	for i := range clients {
		moment := time.Duration(random.IntN(3000)) * time.Millisecond
		atOnce <- struct{}{}
		all.Go(func() {
			defer func() { <-atOnce }()
			client := exec.Command("kubectl", "-n", c.ns, "exec", "-i", "tiny", "--", "sh", "-c", "echo begun; "+commands[i%len(commands)])
			in, _ := client.StdinPipe()
			out, _ := client.StdoutPipe()
			if err := client.Start(); err != nil {
				t.Error(err)
				return
			}
			if i < places {
				_, _ = io.ReadFull(out, make([]byte, len("begun\n")))
			} else {
				time.Sleep(moment)
			}
			_ = client.Process.Kill()
			_ = client.Wait()
			_ = in.Close()
		})
	}
	all.Wait()
	t.Logf("their container has %v", c.container())
	within(t, time.Minute, func() string {
		if got := c.exec("tiny", nil, "true"); got.code != 0 {
			return fmt.Sprintf("%+v", got)
		}
		return ""
	})
	now := c.inside()
	t.Log(now)
	var commandsLeft int
	_, guest, _ := strings.Cut(now, " descriptors; guest: ")
	if _, err := fmt.Sscanf(guest, "%d descriptors, %d commands", new(int), &commandsLeft); err != nil || commandsLeft > places {
		t.Errorf("there are more than %d commands in the guest, %v: %s", places, err, now)
	}
	if n := c.container()["sh"]; n > places {
		t.Errorf("%d clients are left in the container", n)
	}
	c.isUnharmed()
}
