package build

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
)

// entry of an initial RAM disk.
type entry struct {
	path string // without leading slash
	from string // a file of this machine; none makes a directory
	mode int    // permissions
}

// writeInitramfs writes a compressed cpio archive in the "newc" format, as in
// the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
func writeInitramfs(path string, entries []entry) error {
	out, err := os.Create(path)
	if err != nil {
		return err
	}
	zip := gzip.NewWriter(out)
	err = writeCpio(zip, entries)
	return errors.Join(err, zip.Close(), out.Close())
}

func writeCpio(out io.Writer, entries []entry) error {
	for i, e := range entries {
		var data []byte
		mode := 0o040000 | e.mode
		if e.from != "" {
			var err error
			if data, err = os.ReadFile(e.from); err != nil {
				return err
			}
			mode = 0o100000 | e.mode
		}
		if err := writeMember(out, i+1, e.path, mode, data); err != nil {
			return err
		}
	}
	return writeMember(out, 0, "TRAILER!!!", 0, nil)
}

// writeMember: a header of hexadecimal fields, the name, the data, each padded to 4 bytes.
func writeMember(out io.Writer, inode int, name string, mode int, data []byte) error {
	head := []byte("070701")
	for _, field := range []int{inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0} {
		head = fmt.Appendf(head, "%08x", field)
	}
	head = append(append(head, name...), 0)
	for _, part := range [][]byte{head, data} {
		padding := make([]byte, -len(part)&3)
		if _, err := out.Write(append(part, padding...)); err != nil {
			return err
		}
	}
	return nil
}
