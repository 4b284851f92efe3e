package libvirtd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	logDir     = "var/log/libvirt/qemu"
	logTail    = 64 << 10 // of the log, in bytes
	maxOwnText = 512      // of QEMU's own words, in bytes
	logTime    = "2006-01-02 15:04:05.000-0700"
)

// ReadStop reads from the domain's log how its last life ended. The root is the
// daemon's (Client.Root), the name the domain's. The cause is CauseUnknown
// when the log is missing, silent or tells of a life that has not ended. The
// log is the host's own; still, links in it are followed below root only.
func ReadStop(root, name string) (Stop, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return Stop{}, fmt.Errorf("reading the log of domain %q: no such name", name)
	}
	text, err := tail(root, logDir+"/"+name+".log")
	if errors.Is(err, fs.ErrNotExist) {
		return Stop{}, nil
	}
	if err != nil {
		return Stop{}, fmt.Errorf("reading the log of domain %s: %w", name, err)
	}
	return parseStop(text), nil
}

func tail(root, file string) (string, error) {
	dir, err := os.Open(root)
	if err != nil {
		return "", err
	}
	defer dir.Close()
	fd, err := unix.Openat2(int(dir.Fd()), file, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return "", &fs.PathError{Op: "openat2", Path: file, Err: err}
	}
	f := os.NewFile(uintptr(fd), file)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no regular file", file)
	}
	text, err := io.ReadAll(io.NewSectionReader(f, max(0, info.Size()-logTail), logTail))
	return string(text), err
}

// parseStop reads what libvirt (qemuProcessLaunch, qemuDomainLogAppendMessage)
// and QEMU write into a domain's log:
//
//	2026-01-02 03:04:05.678+0000: starting up libvirt version: …
//	(command line)
//	2026-01-02T03:04:06.789012Z qemu-system-x86_64: terminating on signal 15 from pid 1 (…)
//	2026-01-02 03:04:06.890+0000: shutting down, reason=shutdown
func parseStop(text string) Stop {
	var stop Stop
	var own []string
	signalled := false
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		at, entry, isEntry := logEntry(line)
		switch {
		case isEntry && strings.HasPrefix(entry, "starting up"):
			stop, own, signalled = Stop{}, nil, false
		case isEntry:
			if reason, ok := strings.CutPrefix(entry, "shutting down, reason="); ok {
				stop = Stop{Cause: causeOf(reason, signalled), Time: at}
			}
		case strings.Contains(line, " qemu-system-") || strings.Contains(line, " qemu-kvm: "):
			_, words, _ := strings.Cut(line, ": ")
			signalled = signalled || byStranger(words)
			own = append(own, words)
		}
	}
	if stop.Cause != CauseUnknown {
		stop.Message = lastOf(own)
	}
	return stop
}

// byStranger is true when QEMU says that a signal ends it which is not
// libvirtd's. libvirtd sends one too, to clear away the QEMU of a guest that
// has powered off.
func byStranger(words string) bool {
	rest, ok := strings.CutPrefix(words, "terminating on signal ")
	_, sender, _ := strings.Cut(rest, "(")
	sender = path.Base(strings.TrimSuffix(sender, ")"))
	return ok && sender != "libvirtd" && sender != "virtqemud"
}

// logEntry splits a line that libvirt wrote itself.
func logEntry(line string) (at time.Time, entry string, ok bool) {
	if len(line) < len(logTime)+2 || line[len(logTime):len(logTime)+2] != ": " {
		return time.Time{}, "", false
	}
	at, err := time.Parse(logTime, line[:len(logTime)])
	return at, line[len(logTime)+2:], err == nil
}

// causeOf reads the word of virDomainShutoffReason.
func causeOf(reason string, signalled bool) Cause {
	switch {
	case reason == "shutdown" && signalled:
		return CauseSignalled
	case reason == "shutdown":
		return CausePoweredOff
	case reason == "destroyed":
		return CauseDestroyed
	case reason == "crashed", reason == "failed", reason == "daemon":
		return CauseFailed
	case reason == "migrated", reason == "saved":
		return CauseMoved
	default:
		return CauseUnknown
	}
}

// lastOf joins the last lines, as many as fit.
func lastOf(lines []string) string {
	size := 0
	for i, line := range slices.Backward(lines) {
		if size += len(line) + 1; size > maxOwnText {
			lines = lines[i+1:]
			break
		}
	}
	return bounded(strings.Join(lines, "; "))
}
