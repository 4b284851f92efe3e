package diskformat

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
)

const qcow2Magic = "QFI\xfb"

// header is a qcow2 header as docs/interop/qcow2.txt of QEMU lays it out, big endian.
type header struct {
	Magic                 [4]byte
	Version               uint32
	BackingFileOffset     uint64
	BackingFileSize       uint32
	ClusterBits           uint32
	Size                  uint64
	CryptMethod           uint32
	L1Size                uint32
	L1TableOffset         uint64
	RefcountTableOffset   uint64
	RefcountTableClusters uint32
	Snapshots             uint32
	SnapshotsOffset       uint64
	// The rest is version 3.
	Incompatible  uint64
	Compatible    uint64
	Autoclear     uint64
	RefcountOrder uint32
	Length        uint32
	Compression   uint8
	_             [7]byte
}

const (
	headerV2 = 72
	headerV3 = 104
	// headerSize is the whole of header, and what we write.
	headerSize = 112
)

// Incompatible features: who does not know one must not open the image.
const (
	featureDirty = 1 << iota
	featureCorrupt
	featureDataFile
	featureCompression
	featureExtendedL2
	featuresKnown = 1<<iota - 1
)

// Header extensions.
const (
	extensionEnd           = 0
	extensionBackingFormat = 0xe2792aca
	extensionDataFile      = 0x44415441
	extensionEncryption    = 0x0537be77
)

// QEMU's own limits, block/qcow2.h.
const (
	maxL1Bytes       = 32 << 20
	maxRefcountBytes = 8 << 20
	maxSnapshots     = 65536
	maxBackingName   = 1023
)

// qcow2 is a header whose numbers are in bounds, so that arithmetic with them cannot overflow.
type qcow2 struct {
	header
	backingName string
	dataFile    bool // it is not all in this file
}

func (q *qcow2) clusterSize() int64 { return 1 << q.ClusterBits }

// virtualSize rounds up to a sector, as QEMU does.
func (q *qcow2) virtualSize() int64 {
	return (int64(q.Size) + SectorSize - 1) / SectorSize * SectorSize //nolint:gosec // parse checked it
}

// parse reads the header of the size bytes of r and checks that every number in it makes sense.
func parse(r io.ReaderAt, size int64) (*qcow2, error) {
	raw, err := readUpTo(r, 0, min(size, headerSize))
	if err != nil {
		return nil, err
	}
	q, err := parseHeader(raw, size)
	if err != nil {
		return nil, err
	}
	cluster, err := readUpTo(r, 0, min(size, q.clusterSize()))
	if err != nil {
		return nil, err
	}
	return q, q.readExtensions(cluster)
}

// parseHeader reads the header at the start of raw, of a disk of size bytes, without its extensions.
func parseHeader(raw []byte, size int64) (*qcow2, error) {
	switch {
	case !bytes.HasPrefix(raw, []byte(qcow2Magic)):
		return nil, notDisk("it is no qcow2 disk")
	case len(raw) < headerV2:
		return nil, unsafe("it ends inside its header: is it truncated?")
	}
	q := &qcow2{}
	padded := make([]byte, headerSize)
	copy(padded, raw)                                         // raw may be longer
	_, _ = binary.Decode(padded, binary.BigEndian, &q.header) // it is as long
	if q.Version == 2 {
		q.Incompatible, q.Autoclear, q.RefcountOrder, q.Length = 0, 0, 4, headerV2
	}
	if q.Length < headerSize {
		q.Compression = 0
	}
	q.dataFile = q.Incompatible&featureDataFile != 0
	return q, q.checkNumbers(size)
}

// checkNumbers holds the header against QEMU's limits and against the file's size.
func (q *qcow2) checkNumbers(size int64) error {
	switch {
	case q.Version != 2 && q.Version != 3:
		return unsafe("version %d is neither 2 nor 3: %s", q.Version, convert)
	case q.ClusterBits < 9 || q.ClusterBits > 21:
		return unsafe("clusters of 2^%d bytes", q.ClusterBits)
	case q.Version == 3 && q.Length < headerV3, q.Length%8 != 0, int64(q.Length) > min(size, q.clusterSize()):
		return unsafe("its header claims a length of %d bytes", q.Length)
	case q.Size == 0:
		return notDisk("its virtual size is 0")
	case q.Size > MaxVirtualSize:
		return unsafe("a virtual size of %d bytes, the most is 64Ti", q.Size)
	case q.RefcountOrder > 6:
		return unsafe("refcounts of 2^%d bits", q.RefcountOrder)
	case q.CryptMethod != 0:
		return unsafe("it is encrypted: decrypt it with `qemu-img convert -O qcow2`")
	case q.Incompatible&^featuresKnown != 0:
		return unsafe("it uses features this version does not know (%#x): %s", q.Incompatible, convert)
	case q.Incompatible&featureCompression != 0 && q.Compression > 1, q.Incompatible&featureCompression == 0 && q.Compression != 0:
		return unsafe("compression type %d", q.Compression)
	case q.Incompatible&featureExtendedL2 != 0 && q.ClusterBits < 14:
		return unsafe("extended L2 entries with clusters of 2^%d bytes", q.ClusterBits)
	case int64(q.L1Size) < q.l1Needed() || int64(q.L1Size)*8 > maxL1Bytes:
		return unsafe("an L1 table of %d entries", q.L1Size)
	case !q.holds(size, q.L1TableOffset, int64(q.L1Size)*8):
		return unsafe("its L1 table lies outside of it: is it truncated?")
	case q.RefcountTableClusters == 0 || int64(q.RefcountTableClusters)<<q.ClusterBits > maxRefcountBytes:
		return unsafe("a refcount table of %d clusters", q.RefcountTableClusters)
	case !q.holds(size, q.RefcountTableOffset, int64(q.RefcountTableClusters)<<q.ClusterBits):
		return unsafe("its refcount table lies outside of it: is it truncated?")
	case q.Snapshots > maxSnapshots:
		return unsafe("%d snapshots", q.Snapshots)
	// A snapshot's entry has at least 40 bytes.
	case q.Snapshots > 0 && !q.holds(size, q.SnapshotsOffset, int64(q.Snapshots)*40):
		return unsafe("its snapshot table lies outside of it: is it truncated?")
	// QEMU takes no name that goes on behind the first cluster.
	case q.BackingFileOffset != 0 && (q.BackingFileSize == 0 || q.BackingFileSize > maxBackingName ||
		!fits(min(size, q.clusterSize()), q.BackingFileOffset, int64(q.BackingFileSize))):
		return unsafe("the name of its backing file lies outside of its header")
	}
	return nil
}

// l1Needed is how many L1 entries cover the virtual size.
func (q *qcow2) l1Needed() int64 {
	entry := uint32(3) // log2 of an L2 entry's bytes
	if q.Incompatible&featureExtendedL2 != 0 {
		entry = 4
	}
	perL1 := int64(1) << (2*q.ClusterBits - entry)
	return (int64(q.Size) + perL1 - 1) / perL1 //nolint:gosec // at most MaxVirtualSize
}

// holds tells whether a table starts at a cluster behind the header and ends inside of the file.
func (q *qcow2) holds(size int64, offset uint64, length int64) bool {
	return offset != 0 && offset%uint64(q.clusterSize()) == 0 && fits(size, offset, length) //nolint:gosec // a power of two
}

func fits(size int64, offset uint64, length int64) bool {
	return offset <= uint64(size) && length <= size-int64(offset) //nolint:gosec // size is a file's, offset at most that
}

// readExtensions reads the names that the header carries: between its end and the end of its cluster.
func (q *qcow2) readExtensions(cluster []byte) error {
	rest := cluster[q.Length:]
	if at := q.BackingFileOffset; at != 0 {
		q.backingName = string(cluster[at : at+uint64(q.BackingFileSize)])
		rest = cluster[q.Length:max(at, uint64(q.Length))]
	}
	for len(rest) >= 8 {
		kind, length := binary.BigEndian.Uint32(rest), int64(binary.BigEndian.Uint32(rest[4:]))
		rest = rest[8:]
		if kind != extensionEnd && length > int64(len(rest)) {
			return unsafe("a header extension lies outside of its header")
		}
		switch kind {
		case extensionEnd:
			return nil
		case extensionDataFile:
			q.dataFile = true
		case extensionEncryption:
			return unsafe("it is encrypted: decrypt it with `qemu-img convert -O qcow2`")
		}
		rest = rest[min(int64(len(rest)), (length+7)/8*8):]
	}
	return nil
}

// refuseDependence refuses what the header alone tells to need another file or a repair.
func (q *qcow2) refuseDependence() error {
	switch {
	case q.BackingFileOffset != 0:
		return unsafe("it has a backing file: flatten it with `qemu-img convert -O qcow2`")
	case q.dataFile:
		return unsafe("it has an external data file: flatten it with `qemu-img convert -O qcow2`")
	case q.Incompatible&(featureDirty|featureCorrupt) != 0:
		return unsafe("it was not closed properly: repair it with `qemu-img check -r all`")
	}
	return nil
}

// checkL1 finds files that were cut: every L2 table must start inside of them.
func (q *qcow2) checkL1(r io.ReaderAt, size int64) error {
	table, err := readUpTo(r, int64(q.L1TableOffset), int64(q.L1Size)*8) //nolint:gosec // checkNumbers
	if err != nil {
		return err
	}
	const offsetMask = 0x00fffffffffffe00
	for ; len(table) > 0; table = table[8:] {
		offset := binary.BigEndian.Uint64(table) & offsetMask
		if offset != 0 && !q.holds(size, offset, q.clusterSize()) {
			return unsafe("an L2 table lies outside of it: is it truncated?")
		}
	}
	return nil
}

// OverlayOptions describe a new qcow2 disk.
type OverlayOptions struct {
	// Size is what a guest sees, in bytes, rounded up to a sector: 1 to MaxVirtualSize.
	Size int64
	// Backing is the absolute path of the disk that shows through, at most 1023 bytes; "" for a blank disk.
	Backing string
	// BackingFormat is its format. It is always named: probing a raw disk would let a guest choose it.
	BackingFormat Format
}

const (
	overlayClusterBits = 16 // QEMU's default
	overlayCluster     = 1 << overlayClusterBits
	// overlayL1Entry is what one L1 entry covers: 8192 clusters of 64 KiB.
	overlayL1Entry = overlayCluster / 8 * overlayCluster
)

// Overlay is the complete bytes of a fresh qcow2 version 3 disk: one cluster each of header, refcount table and
// refcounts, then an empty L1 table of 8 bytes for each 512 MiB. It is 256 KiB up to 4 TiB, and 1.2 MiB at 64 TiB.
func Overlay(o OverlayOptions) ([]byte, error) {
	switch {
	case o.Size <= 0 || o.Size > MaxVirtualSize:
		return nil, fmt.Errorf("a disk of %d bytes: it must have 1 to %d", o.Size, int64(MaxVirtualSize))
	case o.Backing != "" && (!filepath.IsAbs(o.Backing) || len(o.Backing) > maxBackingName):
		return nil, fmt.Errorf("backing file %q: it must be an absolute path of at most %d bytes", o.Backing, maxBackingName)
	case (o.Backing != "") != (o.BackingFormat == Raw || o.BackingFormat == QCOW2):
		return nil, fmt.Errorf("backing file %q in format %q: both or neither", o.Backing, o.BackingFormat)
	}
	size := (o.Size + SectorSize - 1) / SectorSize * SectorSize
	l1Entries := (size + overlayL1Entry - 1) / overlayL1Entry
	clusters := 3 + (l1Entries*8+overlayCluster-1)/overlayCluster

	h := header{
		Magic:                 [4]byte([]byte(qcow2Magic)),
		Version:               3,
		ClusterBits:           overlayClusterBits,
		Size:                  uint64(size),
		L1Size:                uint32(l1Entries),
		L1TableOffset:         3 * overlayCluster,
		RefcountTableOffset:   1 * overlayCluster,
		RefcountTableClusters: 1,
		RefcountOrder:         4,
		Length:                headerSize,
	}
	var extensions []byte
	if o.Backing != "" {
		format := string(o.BackingFormat)
		extensions = binary.BigEndian.AppendUint32(extensions, extensionBackingFormat)
		extensions = binary.BigEndian.AppendUint32(extensions, uint32(len(format))) //nolint:gosec // a few letters
		extensions = append(extensions, format...)
		extensions = append(extensions, make([]byte, -len(format)&7+8)...) // up to a multiple of 8, and the end
		h.BackingFileOffset = uint64(headerSize + len(extensions))
		h.BackingFileSize = uint32(len(o.Backing)) //nolint:gosec // checked above
		extensions = append(extensions, o.Backing...)
	}

	b := make([]byte, clusters*overlayCluster)
	n, _ := binary.Encode(b, binary.BigEndian, &h) // a cluster has room for it
	copy(b[n:], extensions)
	binary.BigEndian.PutUint64(b[overlayCluster:], 2*overlayCluster)
	for i := range clusters {
		binary.BigEndian.PutUint16(b[2*overlayCluster+2*i:], 1)
	}
	return b, nil
}

// InspectOverlay reads the header of a disk that a guest may have been writing to, so it is hostile too: what a guest sees
// of it, in bytes, and the disk that shows through, "" if none does. It refuses what Inspect refuses, but for a backing file,
// which the caller must compare with its own, and marks of a crash.
func InspectOverlay(r io.ReaderAt, size int64) (virtualSize int64, backing string, err error) {
	q, err := parse(r, size)
	if err != nil {
		return 0, "", err
	}
	if q.dataFile {
		return 0, "", unsafe("it has an external data file")
	}
	return q.virtualSize(), q.backingName, nil
}
