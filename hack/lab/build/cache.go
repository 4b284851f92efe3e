package build

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Cache is a directory of finished parts.
type Cache struct {
	Dir string
	*Progress
}

// part returns the directory that make filled, now or in an earlier run. A part
// is there whole or not at all. key names everything that it depends on.
func (c *Cache) part(name, key string, make func(dir string) error) (string, error) {
	sum := sha256.Sum256([]byte(key))
	prefix := filepath.Join(c.Dir, name+"-")
	path := prefix + hex.EncodeToString(sum[:6])
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", err
	}
	// Two labs may build at once, from two clones.
	lock, err := os.OpenFile(prefix+"lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("locking %s: %w", lock.Name(), err)
	}
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	old, err := filepath.Glob(prefix + "[0-9a-f]*")
	if err != nil {
		return "", err
	}
	err = c.Step("build "+name, func() error {
		scratch := path + ".part"
		if err := os.RemoveAll(scratch); err != nil {
			return err
		}
		if err := os.MkdirAll(scratch, 0o755); err != nil {
			return err
		}
		if err := make(scratch); err != nil {
			os.RemoveAll(scratch)
			return err
		}
		return os.Rename(scratch, path)
	})
	if err != nil {
		return "", err
	}
	for _, o := range old {
		if !strings.HasPrefix(filepath.Base(o), name+"-lock") {
			_ = os.RemoveAll(o) // what an older version left
		}
	}
	return path, nil
}
