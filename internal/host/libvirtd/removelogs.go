package libvirtd

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

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
	dir, err := openInRoot(root, logDir, unix.O_DIRECTORY)
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
		if e := unlinkAt(dir, e.Name()); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("removing the logs of domain %s: %w", name, err)
	}
	return nil
}

func unlinkAt(dir *os.File, name string) error {
	if err := unix.Unlinkat(int(dir.Fd()), name, 0); err != nil {
		return &fs.PathError{Op: "unlinkat", Path: name, Err: err}
	}
	return nil
}
