// Package novnc holds noVNC, a VNC client for browsers, as it is published in the npm package @novnc/novnc: whole, unchanged
// and under its own licence, MPL-2.0 (package/LICENSE.txt; those of its parts are in package/docs). make generate writes
// it, by the version and the digest in hack/generate/novnc.go.
package novnc

import (
	"embed"
	"io/fs"
)

//go:embed package
var files embed.FS

// Files are those of the package: core/rfb.js and what it imports.
func Files() fs.FS {
	sub, err := fs.Sub(files, "package")
	if err != nil {
		panic(err) // the name is right
	}
	return sub
}
