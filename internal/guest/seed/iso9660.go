package seed

import (
	"encoding/binary"
	"slices"
	"strings"
	"unicode/utf16"
)

// The image is ECMA-119 with the Joliet extension, all in fixed places: with a handful of files in the root, each
// table takes one sector. Linux reads the Joliet names, without a version as mkisofs writes them; who knows only
// ECMA-119 finds the same in capitals.
const (
	sector        = 2048
	primarySector = 16
	jolietSector  = 17
	endSector     = 18
	pathsSector   = 19 // of each volume descriptor a little-endian and a big-endian table
	rootSector    = 23
	firstFile     = 25
)

// file is a file in the root. Files are sorted by name, which is in lower case and at most 30 letters.
type file struct {
	name string
	data []byte
}

// image returns an image of size bytes, a multiple of a sector, and how many it takes. If that is more, it is no image.
func image(label string, files []file, size int) (b []byte, needed int) {
	needed = firstFile * sector
	for _, f := range files {
		needed += sectors(len(f.data)) * sector
	}
	if needed > size {
		return nil, needed
	}
	b = make([]byte, size)
	at := func(n int) []byte { return b[n*sector : (n+1)*sector] }

	for i, encode := range []func(string) []byte{plain, ucs2} {
		tables, root, next := pathsSector+2*i, rootSector+i, firstFile
		volume(at(primarySector+i), encode, label, size, tables, root)
		paths(at(tables), binary.LittleEndian, root)
		paths(at(tables+1), binary.BigEndian, root)
		entries := slices.Concat(record([]byte{0}, root, sector, isDirectory), record([]byte{1}, root, sector, isDirectory)) // . and ..
		for _, f := range files {
			name := f.name
			if primarySector+i != jolietSector {
				name = strings.ToUpper(name) + ".;1"
			}
			entries = append(entries, record(encode(name), next, len(f.data), 0)...)
			copy(b[next*sector:], f.data)
			next += sectors(len(f.data))
		}
		copy(at(root), entries)
	}
	at(primarySector)[0], at(jolietSector)[0] = 1, 2
	copy(at(jolietSector)[88:], "%/E") // UCS-2 level 3
	copy(at(endSector), "\xffCD001\x01")
	return b, needed
}

func sectors(bytes int) int { return (bytes + sector - 1) / sector }

func plain(s string) []byte { return []byte(s) }

func ucs2(s string) []byte {
	b, _ := binary.Append(nil, binary.BigEndian, utf16.Encode([]rune(s))) // numbers never fail
	return b
}

// volume fills a volume descriptor, ECMA-119 8.4 and 8.5.
func volume(b []byte, encode func(string) []byte, label string, size, tables, root int) {
	copy(b[1:], "CD001\x01")
	for _, text := range [][2]int{{8, 40}, {40, 72}, {190, 813}} {
		copy(b[text[0]:text[1]], encode(strings.Repeat(" ", text[1]-text[0])))
	}
	copy(b[40:72], encode(label))
	both(b[80:], 4, size/sector)
	both(b[120:], 2, 1)
	both(b[124:], 2, 1)
	both(b[128:], 2, sector)
	both(b[132:], 4, pathsSize)
	binary.LittleEndian.PutUint32(b[140:], uint32(tables)) //nolint:gosec // a constant
	binary.BigEndian.PutUint32(b[148:], uint32(tables+1))  //nolint:gosec // a constant
	copy(b[156:], record([]byte{0}, root, sector, isDirectory))
	for _, date := range []int{813, 830, 847, 864} { // none is known
		copy(b[date:date+16], "0000000000000000")
	}
	b[881] = 1
}

const (
	pathsSize   = 10
	isDirectory = 2
)

// paths fills a path table with its only entry, the root, ECMA-119 9.4.
func paths(b []byte, order binary.ByteOrder, root int) {
	b[0] = 1
	order.PutUint32(b[2:], uint32(root)) //nolint:gosec // a constant
	order.PutUint16(b[6:], 1)
}

// record is a directory record, ECMA-119 9.1.
func record(name []byte, at, size int, flags byte) []byte {
	b := make([]byte, (33+len(name)+1)/2*2)
	b[0] = byte(len(b)) //nolint:gosec // names are short
	both(b[2:], 4, at)
	both(b[10:], 4, size)
	copy(b[18:], []byte{80, 1, 1}) // 1980, so that the same input gives the same bytes
	b[25] = flags
	both(b[28:], 2, 1)
	b[32] = byte(len(name)) //nolint:gosec // names are short
	copy(b[33:], name)
	return b
}

// both writes a number of so many bytes little-endian, and then big-endian.
func both(b []byte, size, n int) {
	for i := range size {
		b[i] = byte(n >> (8 * i)) //nolint:gosec // one byte of it
		b[2*size-1-i] = b[i]
	}
}
