package build

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Hostile builds the tiny guest with programs beside what it has, which its console calls by their names, and returns its
// directory: that of its image, and vmlinuz and initrd.
func (c *Cache) Hostile(programs []string) (string, error) {
	tiny, err := c.Tiny()
	if err != nil {
		return "", err
	}
	keys := []string{filepath.Base(tiny)}
	var entries []entry
	for _, program := range programs {
		raw, err := os.ReadFile(program)
		if err != nil {
			return "", err
		}
		keys = append(keys, fmt.Sprintf("%x", sha256.Sum256(raw)))
		entries = append(entries, entry{"bin/" + filepath.Base(program), program, 0o755})
	}
	return c.part("guest-hostile", strings.Join(keys, " "), func(dir string) error {
		initrd := filepath.Join(dir, "initrd")
		if err := addToInitramfs(initrd, filepath.Join(tiny, "initrd"), entries); err != nil {
			return err
		}
		vmlinuz := filepath.Join(dir, "vmlinuz")
		if err := os.Link(filepath.Join(tiny, "vmlinuz"), vmlinuz); err != nil {
			return err
		}
		img, err := Data([]File{
			{Path: "/boot/vmlinuz", From: vmlinuz, Mode: 0o644},
			{Path: "/boot/initrd", From: initrd, Mode: 0o644},
		})
		if err != nil {
			return err
		}
		return SaveImage(img, dir)
	})
}

// addToInitramfs writes an initial RAM disk of all that another one has, and of more: Linux unpacks archives that stand one
// behind the other, each at a multiple of four bytes.
func addToInitramfs(path, base string, more []entry) error {
	all, err := os.ReadFile(base)
	if err != nil {
		return err
	}
	if err := writeInitramfs(path, more); err != nil {
		return err
	}
	last, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return os.WriteFile(path, slices.Concat(all, make([]byte, -len(all)&3), last), 0o644)
}
