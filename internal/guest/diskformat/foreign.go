package diskformat

import (
	"bytes"
	"io"
)

const convert = "convert it with `qemu-img convert -O qcow2`"

// foreign are things that people push by mistake. A raw disk has no magic of its own, so without this list a
// guest would see such a file as a disk that does not boot.
var foreign = []struct {
	offset int
	magic  string
	name   string
	mend   string
}{
	{0, "KDMV", "a VMDK disk", convert},
	{0, "COWD", "a VMDK disk", convert},
	{0, "# Disk DescriptorFile", "a VMDK description", "convert the disk it describes with `qemu-img convert -O qcow2`"},
	{0, "vhdxfile", "a VHDX disk", convert},
	{0, "conectix", "a VHD disk", convert},
	{0x40, "\x7f\x10\xda\xbe", "a VDI disk", convert},
	{0, "QED\x00", "a QED disk", convert},
	{0, "WithoutFreeSpace", "a Parallels disk", convert},
	{0, "WithouFreSpacExt", "a Parallels disk", convert},
	{0, "LUKS\xba\xbe", "an encrypted (LUKS) disk", "decrypt it first"},
	{0, "\x1f\x8b", "compressed with gzip", "decompress it first"},
	{0, "\xfd7zXZ\x00", "compressed with xz", "decompress it first"},
	{0, "\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first"},
	{0, "BZh", "compressed with bzip2", "decompress it first"},
	{0, "\x04\x22\x4d\x18", "compressed with lz4", "decompress it first"},
	{0, "7z\xbc\xaf\x27\x1c", "a 7z archive", "push the disk inside it"},
	{0, "PK\x03\x04", "a zip archive", "push the disk inside it"},
	{257, "ustar", "a tar archive", "push the disk inside it"},
	{0, "\x7fELF", "a program (ELF)", "push a raw or qcow2 disk"},
	{0x202, "HdrS", "a Linux kernel", "name it in spec.kernel, or push a raw or qcow2 disk"},
	{0, "<!DOCTYPE", "a web page", "push a raw or qcow2 disk"},
	{0, "<html", "a web page", "push a raw or qcow2 disk"},
}

// footers are at the start of the last sector.
var footers = []struct{ magic, name string }{
	{"conectix", "a VHD disk"},
	{"koly", "a DMG disk"},
}

func refuseForeignHead(head []byte) error {
	for _, f := range foreign {
		if len(head) >= f.offset && bytes.HasPrefix(head[f.offset:], []byte(f.magic)) {
			return notDisk("it is %s: %s", f.name, f.mend)
		}
	}
	return nil
}

func refuseForeign(r io.ReaderAt, head []byte, size int64) error {
	if err := refuseForeignHead(head); err != nil || size < SectorSize {
		return err
	}
	tail, err := readUpTo(r, size-SectorSize, 8)
	if err != nil {
		return err
	}
	for _, f := range footers {
		if bytes.HasPrefix(tail, []byte(f.magic)) {
			return notDisk("it is %s: %s", f.name, convert)
		}
	}
	return nil
}
