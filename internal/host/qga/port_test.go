package qga

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// terminal makes what QEMU has of a guest agent's port: this process has it open in QEMU's stead.
func terminal(t *testing.T) (qemu *os.File, pts int) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	qemu = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { _ = qemu.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	if pts, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
		t.Fatal(err)
	}
	state, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	state.Iflag, state.Oflag, state.Lflag = 0, 0, 0 // as QEMU makes it
	if err := unix.IoctlSetTermios(fd, unix.TCSETS, state); err != nil {
		t.Fatal(err)
	}
	return qemu, pts
}

// be answers as a guest agent: what it says before the answer to a synchronisation, and what to a command.
func be(qemu *os.File, before func(id string) string, reply string) <-chan string {
	asked := make(chan string, 10)
	go func() {
		lines := bufio.NewReader(qemu)
		for {
			line, err := lines.ReadString('\n')
			if errors.Is(err, unix.EIO) { // nobody has the other end open
				time.Sleep(time.Millisecond)
				continue
			}
			if err != nil {
				return
			}
			var command struct {
				Execute   string
				Arguments struct{ ID json.Number }
			}
			text := strings.Trim(line, "\xff\n")
			if json.Unmarshal([]byte(text), &command) != nil {
				continue
			}
			if id := command.Arguments.ID.String(); command.Execute == "guest-sync-delimited" {
				_, _ = fmt.Fprintf(qemu, "%s\xff{\"return\": %s}\n", before(id), id)
				continue
			}
			asked <- text
			_, _ = qemu.WriteString(reply)
		}
	}()
	return asked
}

func nothing(string) string { return "" }

func TestPort(t *testing.T) {
	const ping = `{"execute":"guest-ping"}`
	for name, c := range map[string]struct {
		before func(id string) string
		reply  string
		want   string // of the error if it has no brace
	}{
		"an honest agent":                       {nothing, `{"return":{}}` + "\n", `{"return":{}}`},
		"carriage returns":                      {nothing, `{"return":{}}` + "\r\n", `{"return":{}}`},
		"half a reply of the time before":       {func(string) string { return `{"return":{"host` }, `{"return":{}}` + "\n", `{"return":{}}`},
		"replies of the time before":            {func(string) string { return "{\"return\":7}\n\xff{\"return\":8}\n" }, `{"return":{}}` + "\n", `{"return":{}}`},
		"an error, as to half a command":        {func(string) string { return `{"error":{"class":"GenericError"}}` + "\n" }, `{"return":{}}` + "\n", `{"return":{}}`},
		"lists nested below all that one reads": {func(string) string { return strings.Repeat("[", 100_000) + "\n" }, `{"return":{}}` + "\n", `{"return":{}}`},
		"no end before it answers":              {func(string) string { return strings.Repeat("\x00", 2*maxStale) }, "", "more than it may"},
		"lines without end before it answers":   {func(string) string { return strings.Repeat("{}\n", maxStale) }, "", "more than it may"},
		"a reply without end":                   {nothing, strings.Repeat("[", 2*maxReply), "more than it may"},
		"silence":                               {nothing, "", "timeout"},
	} {
		t.Run(name, func(t *testing.T) {
			qemu, pts := terminal(t)
			be(qemu, c.before, c.reply)
			patience := time.Minute // a busy machine takes its time
			if name == "silence" {
				patience = time.Second
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			port, err := OpenPort(ctx, os.Getpid(), pts)
			if err != nil {
				t.Fatal(err)
			}
			defer port.Close()
			got, err := port.AgentCommand(ctx, ping)
			if strings.HasPrefix(c.want, "{") {
				if got != c.want || err != nil {
					t.Errorf("it says %q, %v; want %q", got, err, c.want)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), c.want) || fault.ReasonOf(err) != v1alpha1.ReasonGuestAgentNotConnected {
				t.Errorf("error %v, want %q", err, c.want)
			}
		})
	}
}

// TestConversationsFollowEachOther: what one left unread is not taken for an answer by the next.
func TestConversationsFollowEachOther(t *testing.T) {
	qemu, pts := terminal(t)
	asked := be(qemu, nothing, strings.Repeat(`{"return":1}`+"\n", 3))
	first, err := OpenPort(t.Context(), os.Getpid(), pts)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*lockRetry)
	defer cancel()
	if _, err := OpenPort(ctx, os.Getpid(), pts); fault.ReasonOf(err) != v1alpha1.ReasonGuestAgentNotConnected {
		t.Errorf("a second conversation at once: %v", err)
	}
	for range 3 {
		if got, err := first.AgentCommand(t.Context(), `{"execute":"guest-info"}`); got != `{"return":1}` || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	_ = first.Close()
	second, err := OpenPort(t.Context(), os.Getpid(), pts)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if err := second.PowerDown(t.Context()); err != nil {
		t.Error(err)
	}
	for range 3 {
		<-asked
	}
	if got := <-asked; got != `{"execute":"guest-shutdown","arguments":{"mode":"powerdown"}}` {
		t.Errorf("it was asked %s", got)
	}
}

func TestPortThatIsNotThere(t *testing.T) {
	qemu, pts := terminal(t)
	for name, open := range map[string]func() (*Port, error){
		"another terminal": func() (*Port, error) { return OpenPort(t.Context(), os.Getpid(), pts+1) },
		"no process":       func() (*Port, error) { return OpenPort(t.Context(), 1<<30, pts) },
		"an end of QEMU's": func() (*Port, error) { _ = qemu.Close(); return OpenPort(t.Context(), os.Getpid(), pts) },
	} {
		if _, err := open(); fault.ReasonOf(err) != v1alpha1.ReasonGuestAgentNotConnected {
			t.Errorf("%s: %v", name, err)
		}
	}
}
