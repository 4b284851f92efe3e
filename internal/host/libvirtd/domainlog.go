package libvirtd

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/host/namespace"
)

const (
	logDir        = "var/log/libvirt/qemu"
	logTail       = 64 << 10 // of the log, in bytes
	maxQEMUOutput = 512      // of QEMU's output, in bytes
	logTime       = "2006-01-02 15:04:05.000-0700"
)

// ReadExit reads from the domain's log how its last life ended. The root is the daemon's (Client.Root), the name the
// domain's. The cause is CauseUnknown when the log is missing, silent or tells of a life that has not ended. The log is the
// host's own; still, links in it are followed below root only.
func ReadExit(root, name string) (Exit, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return Exit{}, fmt.Errorf("reading the log of domain %q: invalid name", name)
	}
	text, err := tail(root, logDir+"/"+name+".log")
	if errors.Is(err, fs.ErrNotExist) {
		return Exit{}, nil
	}
	return parseExit(text), fault.Doing(err, "reading the log of domain %s", name)
}

func tail(root, file string) (string, error) {
	f, err := namespace.Open(root, file, 0)
	if err != nil {
		return "", err
	}
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

// parseExit reads what libvirt (qemuProcessLaunch, qemuDomainLogAppendMessage) and QEMU write into a domain's log:
//
//	2026-01-02 03:04:05.678+0000: starting up libvirt version: …
//	(command line)
//	2026-01-02T03:04:06.789012Z qemu-system-x86_64: terminating on signal 15 from pid 1 (…)
//	2026-01-02 03:04:06.890+0000: shutting down, reason=shutdown
//
// All that is neither libvirt's nor the command line, of which each line but the last ends with a backslash, is QEMU's
// output, also what its libraries print when they abort. That is the message, whatever the cause.
func parseExit(text string) Exit {
	var exit Exit
	var output []string
	sender, command := "", false // sender is the program whose signal ended QEMU
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		continued := command
		command = strings.HasSuffix(line, `\`)
		at, entry, isEntry := logEntry(line)
		switch {
		case isEntry && strings.HasPrefix(entry, "starting up"):
			exit, output, sender = Exit{}, nil, ""
		case isEntry:
			if reason, ok := strings.CutPrefix(entry, "shutting down, reason="); ok {
				exit = Exit{Cause: causeOfReason(reason, sender), Time: at}
			}
		case strings.Contains(line, "char device redirected to /dev/pts/"): // the guest agent's port, of each QEMU at its start
		case strings.Contains(line, " qemu-system-") || strings.Contains(line, " qemu-kvm: "):
			_, said, _ := strings.Cut(line, ": ")
			sender = cmp.Or(sender, signalSender(said))
			output = append(output, said)
		case !continued && !command && line != "":
			output = append(output, line)
		}
	}
	exit.Message = lastLines(output)
	return exit
}

// signalSender is the program whose signal ends QEMU, as that says, "" if it says none.
func signalSender(said string) string {
	rest, ok := strings.CutPrefix(said, "terminating on signal ")
	if !ok {
		return ""
	}
	_, sender, _ := strings.Cut(rest, "(")
	return path.Base(strings.TrimSuffix(sender, ")"))
}

// logEntry splits a line that libvirt wrote itself.
func logEntry(line string) (at time.Time, entry string, ok bool) {
	if len(line) < len(logTime)+2 || line[len(logTime):len(logTime)+2] != ": " {
		return time.Time{}, "", false
	}
	at, err := time.Parse(logTime, line[:len(logTime)])
	return at, line[len(logTime)+2:], err == nil
}

// causeOfReason reads the name of a virDomainShutoffReason, and which program's signal ended QEMU. libvirtd's is one to
// the QEMU of a guest that has powered off.
func causeOfReason(reason, sender string) Cause {
	switch {
	case reason == "shutdown" && (sender == "" || sender == "libvirtd" || sender == "virtqemud"):
		return CausePoweredOff
	case reason == "shutdown" && sender == "berth-agent":
		return CauseTerminated
	case reason == "shutdown":
		return CauseSignalled
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

// lastLines joins the last lines, as many as fit, or the start of the last if that alone does not.
func lastLines(lines []string) string {
	size := 0
	for i, line := range slices.Backward(lines) {
		if size += len(line) + len("; "); size > maxQEMUOutput {
			lines = lines[min(i+1, len(lines)-1):]
			break
		}
	}
	text := fault.Printable(strings.Join(lines, "; "), maxErrorText)
	return strings.ToValidUTF8(text[:min(len(text), maxQEMUOutput)], "")
}

// logSuffix is what follows a domain's name in its log, and in those that virtlogd (NAME.log.0) or logrotate (NAME.log.2.gz,
// NAME.log-20260131.xz) have rotated. No other domain's log fits, as each ends so once.
var logSuffix = regexp.MustCompile(`^\.log([.-][0-9]+)?(\.(gz|xz|bz2|zst))?$`)

// RemoveLogs removes the logs of a domain that will not come back. That there are none is no error.
func (c *Client) RemoveLogs(name string) error {
	root, err := c.Root()
	if err != nil {
		return err
	}
	return removeLogs(root, name)
}

// removeLogs follows links to the directory below root only, and removes nothing but regular files in it.
func removeLogs(root, name string) error {
	dir, err := namespace.Open(root, logDir, unix.O_DIRECTORY)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("removing the logs of domain %s: %w", name, err)
	}
	defer dir.Close()
	entries, err := dir.ReadDir(-1)
	for _, e := range entries {
		suffix, ours := strings.CutPrefix(e.Name(), name)
		if !ours || !e.Type().IsRegular() || !logSuffix.MatchString(suffix) {
			continue
		}
		if e := unix.Unlinkat(int(dir.Fd()), e.Name(), 0); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("%s%s: %w", name, suffix, e))
		}
	}
	return fault.Doing(err, "removing the logs of domain %s", name)
}
