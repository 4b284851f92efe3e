package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// channelPath finds the device of the port that a guest agent serves.
func channelPath() (string, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return "", err
	}
	for _, path := range names {
		if name, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(name)) == "org.qemu.guest_agent.0" {
			return filepath.Join("/dev", filepath.Base(filepath.Dir(path))), nil
		}
	}
	return "", errors.New("there is no port for a guest agent")
}

// flapChannel opens and closes the channel so many times.
func flapChannel(count int) error {
	path, err := channelPath()
	if err != nil {
		return err
	}
	for range count {
		fd, err := syscall.Open(path, syscall.O_RDWR, 0)
		if err != nil {
			return fmt.Errorf("opening %s: %w", path, err)
		}
		if err := syscall.Close(fd); err != nil {
			return err
		}
	}
	return nil
}

// request is one of the host's to a guest agent.
type request struct {
	Execute   string
	Arguments struct{ ID json.Number }
}

// tale is what a guest agent answers, by command; the answer to "" is that to any other.
type tale struct {
	name    string
	answers map[string]string
}

// escapes clear a screen, change a title, ask a terminal for its cursor, set a colour, and turn text round.
const escapes = `\u001b[2J\u001b]0;owned\u0007\u001b[6n\u009b31m\u202e\u0000\r\n`

// tales are lies, and the truth at last.
func tales() []tale {
	return []tale{
		{"lists in lists", map[string]string{"": `{"return":` + strings.Repeat("[", 1<<20) + strings.Repeat("]", 1<<20) + `}`}},
		{"names for a terminal", map[string]string{
			"guest-info":          `{"return":{"version":"` + escapes + strings.Repeat("9", 1000) + `"}}`,
			"guest-get-host-name": `{"return":{"host-name":"` + escapes + `host"}}`,
			"guest-get-osinfo":    `{"return":{"pretty-name":"` + escapes + `system","kernel-release":[[[[[]]]]]}}`,
		}},
		{"text without end", map[string]string{"": `{"return":{"version":"` + strings.Repeat("x", 12<<20)}},
		{"the truth", map[string]string{
			"guest-info":          `{"return":{"version":"1.0-honest"}}`,
			"guest-get-host-name": `{"return":{"host-name":"tiny"}}`,
			"guest-get-osinfo":    `{"return":{"pretty-name":"Tiny"}}`,
		}},
	}
}

// noticed is for how long a port stays open, or closed, so that the host hears of it: QEMU tells once a second. One that
// is closed forgets what nobody has read yet.
const noticed = 1500 * time.Millisecond

// beAgent tells each tale on a connection of its own.
func beAgent() error {
	path, err := channelPath()
	if err != nil {
		return err
	}
	for _, t := range tales() {
		if err := t.tell(path); err != nil {
			return fmt.Errorf("telling %s: %w", t.name, err)
		}
		fmt.Printf("hostile: told %s\n", t.name)
	}
	return nil
}

// tell tells all on one connection.
func (t tale) tell(path string) error {
	port, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	told := 0
	err = t.converse(port, func() bool { told++; return told == len(t.answers) })
	time.Sleep(noticed)
	err = errors.Join(err, port.Close())
	time.Sleep(noticed)
	return err
}

func isSync(r request) bool { return r.Execute == "guest-sync-delimited" }

// converse answers requests until enough was told.
func (t tale) converse(port *os.File, enough func() bool) error {
	lines := bufio.NewReader(port)
	for {
		line, err := lines.ReadString('\n')
		if errors.Is(err, io.EOF) { // nobody is at the other end: the host comes when it hears that the port is open
			time.Sleep(10 * time.Millisecond)
			continue
		}
		if err != nil {
			return err
		}
		var asked request
		if err := json.Unmarshal([]byte(strings.TrimLeft(line, "\xff")), &asked); err != nil {
			continue // the rest of a request to the one before
		}
		answer, is := t.answers[asked.Execute]
		switch {
		case isSync(asked):
			answer = "\xff" + `{"return":` + asked.Arguments.ID.String() + `}`
		case !is:
			answer = t.answers[""]
		}
		if _, err := port.WriteString(answer + "\n"); err != nil {
			return err
		}
		if !isSync(asked) && enough() {
			return nil
		}
	}
}
