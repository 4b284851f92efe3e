package diskformat

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// Format is a disk format, by QEMU's name for it.
type Format string

// The formats that Berth takes.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// MaxVirtualSize is the largest disk in bytes, 64 TiB: as the API's limit.
const MaxVirtualSize = 64 << 40

// SectorSize is the unit of a disk's size in bytes.
const SectorSize = 512

// Info is what a disk image says of itself.
type Info struct {
	Format Format
	// VirtualSize is what a guest sees, in bytes: a multiple of SectorSize, so a raw disk may have to be padded to it.
	VirtualSize int64
}

// Inspect tells what disk the size bytes of r hold. It refuses, by the user, whatever is no raw or qcow2 disk
// (ImageNotDisk) and every qcow2 that reaches outside of itself, is encrypted, damaged or absurd (ImageUnsafe).
func Inspect(r io.ReaderAt, size int64) (Info, error) {
	if size == 0 {
		return Info{}, notDisk("it is empty")
	}
	head, err := readUpTo(r, 0, min(size, HeadSize))
	if err != nil {
		return Info{}, err
	}
	if bytes.HasPrefix(head, []byte(qcow2Magic)) {
		q, err := parse(r, size)
		if err == nil {
			err = q.refuseDependence()
		}
		if err == nil {
			err = q.checkL1(r, size)
		}
		if err != nil {
			return Info{}, err
		}
		return Info{Format: QCOW2, VirtualSize: q.virtualSize()}, nil
	}
	footer, err := readUpTo(r, max(0, size-SectorSize), min(size, 8))
	if err == nil {
		err = refuseForeign(head, footer)
	}
	if err != nil {
		return Info{}, err
	}
	switch {
	case size < SectorSize:
		return Info{}, notDisk("its %d bytes are less than a sector of %d: is it truncated?", size, SectorSize)
	case size > MaxVirtualSize:
		return Info{}, fault.NewUser(v1alpha1.ReasonImageTooLarge, fmt.Errorf("the disk has %d bytes, the most is 64Ti", size))
	}
	return Info{Format: Raw, VirtualSize: (size + SectorSize - 1) / SectorSize * SectorSize}, nil
}

// HeadSize is how many bytes InspectHead wants.
const HeadSize = 1024

// InspectHead refuses, as Inspect does, what the first HeadSize bytes of a disk tell already, and returns its format. A
// disk that it takes may still be refused once it is whole.
func InspectHead(head []byte) (Format, error) {
	if !bytes.HasPrefix(head, []byte(qcow2Magic)) {
		return Raw, refuseForeign(head, nil)
	}
	q, err := parseHeader(head, math.MaxInt64)
	if err != nil {
		return QCOW2, err
	}
	return QCOW2, q.refuseDependence()
}

// readUpTo reads n bytes at offset, all of which must exist.
func readUpTo(r io.ReaderAt, offset, n int64) ([]byte, error) {
	b := make([]byte, n)
	if _, err := io.ReadFull(io.NewSectionReader(r, offset, n), b); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil, unsafe("it ends before its own tables do: is it truncated?")
		}
		return nil, fmt.Errorf("reading a disk's header: %w", err)
	}
	return b, nil
}

func notDisk(format string, args ...any) error {
	return fault.NewUser(v1alpha1.ReasonImageNotDisk, fmt.Errorf("not a disk Berth can use: "+format, args...))
}

func unsafe(format string, args ...any) error {
	return fault.NewUser(v1alpha1.ReasonImageUnsafe, fmt.Errorf("unsafe qcow2 disk: "+format, args...))
}

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

// refuseForeign refuses what the head of a disk, or the start of its last sector, tell to be something else.
func refuseForeign(head, footer []byte) error {
	for _, f := range foreign {
		if len(head) >= f.offset && bytes.HasPrefix(head[f.offset:], []byte(f.magic)) {
			return notDisk("it is %s: %s", f.name, f.mend)
		}
	}
	for _, f := range footers {
		if bytes.HasPrefix(footer, []byte(f.magic)) {
			return notDisk("it is %s: %s", f.name, convert)
		}
	}
	return nil
}
