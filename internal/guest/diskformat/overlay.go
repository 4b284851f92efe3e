package diskformat

import (
	"encoding/binary"
	"fmt"
	"io"
	"path/filepath"
)

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
		h.BackingFileOffset = uint64(headerSize + len(extensions))         //nolint:gosec // positive
		h.BackingFileSize = uint32(len(o.Backing))                         //nolint:gosec // checked above
		extensions = append(extensions, o.Backing...)
	}

	b := make([]byte, clusters*overlayCluster)
	n, err := binary.Encode(b, binary.BigEndian, &h)
	if err != nil {
		return nil, err
	}
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
