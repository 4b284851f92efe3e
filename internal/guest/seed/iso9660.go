package seed

import (
	"encoding/binary"
	"strings"
	"unicode/utf16"
)

// The image is ECMA-119 with the Joliet extension, all in fixed places: with a handful of files in the root, each
// table takes one sector. Linux reads the Joliet names, without a version as mkisofs writes them; who knows only
// ECMA-119 finds the same in capitals.
const (
	sector = 2048

	primarySector = 16 + iota - 1
	jolietSector
	endSector
	primaryPathsLE
	primaryPathsBE
	jolietPathsLE
	jolietPathsBE
	primaryRoot
	jolietRoot
	firstFile
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

	volume(at(primarySector), 1, plain, label, size, primaryPathsLE, primaryPathsBE, primaryRoot)
	volume(at(jolietSector), 2, ucs2, label, size, jolietPathsLE, jolietPathsBE, jolietRoot)
	copy(at(jolietSector)[88:], "%/E") // UCS-2 level 3
	copy(at(endSector), "\xffCD001\x01")
	paths(at(primaryPathsLE), binary.LittleEndian, primaryRoot)
	paths(at(primaryPathsBE), binary.BigEndian, primaryRoot)
	paths(at(jolietPathsLE), binary.LittleEndian, jolietRoot)
	paths(at(jolietPathsBE), binary.BigEndian, jolietRoot)

	primary, joliet := directory(primaryRoot), directory(jolietRoot)
	next := firstFile
	for _, f := range files {
		primary = append(primary, record(plain(strings.ToUpper(f.name)+".;1"), next, len(f.data), 0)...)
		joliet = append(joliet, record(ucs2(f.name), next, len(f.data), 0)...)
		copy(b[next*sector:], f.data)
		next += sectors(len(f.data))
	}
	copy(at(primaryRoot), primary)
	copy(at(jolietRoot), joliet)
	return b, needed
}

func sectors(bytes int) int { return (bytes + sector - 1) / sector }

func plain(s string) []byte { return []byte(s) }

func ucs2(s string) []byte {
	var b []byte
	for _, u := range utf16.Encode([]rune(s)) {
		b = binary.BigEndian.AppendUint16(b, u)
	}
	return b
}

// volume fills a volume descriptor, ECMA-119 8.4 and 8.5.
func volume(b []byte, kind byte, encode func(string) []byte, label string, size, pathsLE, pathsBE, root int) {
	b[0] = kind
	copy(b[1:], "CD001\x01")
	for _, text := range [][2]int{{8, 40}, {40, 72}, {190, 813}} {
		copy(b[text[0]:text[1]], encode(strings.Repeat(" ", text[1]-text[0])))
	}
	copy(b[40:72], encode(label))
	both32(b[80:], size/sector)
	both16(b[120:], 1)
	both16(b[124:], 1)
	both16(b[128:], sector)
	both32(b[132:], pathsSize)
	binary.LittleEndian.PutUint32(b[140:], uint32(pathsLE)) //nolint:gosec // a constant
	binary.BigEndian.PutUint32(b[148:], uint32(pathsBE))    //nolint:gosec // a constant
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

// directory begins a root directory with its records for itself and its parent, which it is too.
func directory(root int) []byte {
	return append(record([]byte{0}, root, sector, isDirectory), record([]byte{1}, root, sector, isDirectory)...)
}

// record is a directory record, ECMA-119 9.1.
func record(name []byte, at, size int, flags byte) []byte {
	b := make([]byte, (33+len(name)+1)/2*2)
	b[0] = byte(len(b)) //nolint:gosec // names are short
	both32(b[2:], at)
	both32(b[10:], size)
	copy(b[18:], []byte{80, 1, 1}) // 1980, so that the same input gives the same bytes
	b[25] = flags
	both16(b[28:], 1)
	b[32] = byte(len(name)) //nolint:gosec // names are short
	copy(b[33:], name)
	return b
}

func both16(b []byte, n int) {
	binary.LittleEndian.PutUint16(b, uint16(n))  //nolint:gosec // a sector's number, or a size of a few
	binary.BigEndian.PutUint16(b[2:], uint16(n)) //nolint:gosec // as above
}

func both32(b []byte, n int) {
	binary.LittleEndian.PutUint32(b, uint32(n))  //nolint:gosec // a size of some MiB
	binary.BigEndian.PutUint32(b[4:], uint32(n)) //nolint:gosec // as above
}
