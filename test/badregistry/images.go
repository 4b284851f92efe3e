package badregistry

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/berth-dev/berth/internal/guest/diskformat"
)

// Image is one of a single layer.
type Image struct {
	mediaType string
	layer     []byte
}

const mib = 1 << 20

// Disk is a containerDisk.
func Disk(disk string) Image { return archive(gzip.NoCompression, file("disk/disk.img", disk)) }

// Boot has a kernel for direct boot.
func Boot(kernel string) Image { return archive(gzip.BestSpeed, file("boot/vmlinuz", kernel)) }

// TwoDisks has more than one file where a containerDisk has its disk.
func TwoDisks() Image {
	return archive(gzip.BestSpeed, file("disk/a.img", "a"), file("disk/b.img", "b"))
}

// Outside has its disk at a path that leads out of the image.
func Outside() Image {
	return archive(gzip.BestSpeed, file("disk/../../../etc/cron.d/disk.img", "* * * * * root true\n"))
}

// SymbolicLink has a link to a file of the host as its disk.
func SymbolicLink() Image {
	return archive(gzip.BestSpeed, entry{Header: tar.Header{Name: "disk/disk.img", Typeflag: tar.TypeSymlink, Linkname: "/etc/shadow"}})
}

// HardLink has a link to a file of the host as its disk.
func HardLink() Image {
	return archive(gzip.BestSpeed, entry{Header: tar.Header{Name: "disk/disk.img", Typeflag: tar.TypeLink, Linkname: "/etc/shadow"}})
}

// Device has a disk of the host as its disk.
func Device() Image {
	return archive(gzip.BestSpeed, entry{Header: tar.Header{Name: "disk/disk.img", Typeflag: tar.TypeBlock, Devmajor: 8}})
}

// Tebibyte says that its disk has a TiB, of which there is nothing.
func Tebibyte() Image {
	return archive(gzip.BestSpeed, entry{Header: tar.Header{Name: "disk/disk.img", Typeflag: tar.TypeReg, Mode: 0o444, Size: 1 << 40}})
}

// Whiteouts has a name of almost a MiB for each MiB that it has, of few bytes on the wire.
func Whiteouts(mebi int) Image {
	entries := make([]entry, mebi)
	long := strings.Repeat("x", mib-1<<10)
	for n := range entries {
		entries[n] = entry{Header: tar.Header{Name: fmt.Sprint("disk/.wh.", n, long), Typeflag: tar.TypeReg}}
	}
	return archive(gzip.BestSpeed, entries...)
}

// Zeroes is a disk of so many GiB, all of them zero: 32 KiB on the wire for each.
func Zeroes(gibi int) Image {
	const usual = 13 << 3 // 8 MiB
	return Image{mediaType: artifactType, layer: frame(usual, gibi<<30/block, 0, nil)}
}

// Window is a disk whose zstd frame has a window of 128 MiB, which its first half fills: that has six thousand bytes.
func Window() Image {
	const large, size = 17 << 3, 128 * mib
	blocks := size / block
	return Image{mediaType: artifactType, layer: frame(large, blocks, 'x', noise(8*blocks))}
}

// artifactType is that of a blob that is a disk.
const artifactType = "application/vnd.test.disk"

// block is the most that a block of a zstd frame unpacks to.
const block = 128 << 10

// frame is a zstd frame, RFC 8878 section 3.1.1, with a window descriptor: so many blocks that repeat one byte, and one
// of what follows as it is.
func frame(window byte, blocks int, repeated byte, rest []byte) []byte {
	b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0, window}
	const last, raw, rle = 1, 0 << 1, 1 << 1
	header := func(flags, size int) { b = append(b, byte(flags|size<<3), byte(size>>5), byte(size>>13)) } //nolint:gosec // little-endian
	for range blocks {
		header(rle, block)
		b = append(b, repeated)
	}
	header(raw|last, len(rest))
	return append(b, rest...)
}

// VMDK is a disk of VMware's, of so many MiB on the wire.
func VMDK(mebi int) Image { return Disk("KDMV\x01\x00\x00\x00" + string(noise(mebi*mib))) }

// Enormous is a qcow2 disk of the most that there may be, 64 TiB.
func Enormous() Image { return Disk(string(qcow2(64<<40, ""))) }

// Backed is a qcow2 disk that names what shows through by JSON.
func Backed() Image {
	return Disk(string(qcow2(mib, `/json:{"driver":"raw","file":{"filename":"/etc/shadow"}}`)))
}

// DataFile is a qcow2 disk whose data is in another file, by its features.
func DataFile() Image {
	disk := qcow2(mib, "")
	const features, dataFile = 72, 1 << 2 // the header's incompatible features, as QEMU's docs/interop/qcow2 has them
	binary.BigEndian.PutUint64(disk[features:], dataFile)
	return Disk(string(disk))
}

// qcow2 is a blank disk. The name of what backs it begins with a slash where it is made, and not in what is made.
func qcow2(size int64, backing string) []byte {
	o := diskformat.OverlayOptions{Size: size, Backing: backing}
	if backing != "" {
		o.BackingFormat = diskformat.Raw
	}
	disk, err := diskformat.Overlay(o)
	if err != nil {
		panic(err)
	}
	return bytes.Replace(disk, []byte("/json:{"), []byte("json:{ "), 1)
}

// noise cannot be compressed.
func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{}).Read(b)
	return b
}

// entry is one of an archive.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o444, Size: int64(len(content))}, content}
}

// archive is an image of one layer, compressed by a level of gzip's. The last entry may have less than it says.
func archive(level int, entries ...entry) Image {
	var layer bytes.Buffer
	z, err := gzip.NewWriterLevel(&layer, level)
	if err != nil {
		panic(err)
	}
	w := tar.NewWriter(z)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			panic(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			panic(err)
		}
	}
	if last := entries[len(entries)-1]; last.Size == int64(len(last.content)) {
		err = w.Close()
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		panic(err)
	}
	return Image{mediaType: "application/vnd.oci.image.layer.v1.tar+gzip", layer: layer.Bytes()}
}
