// Package tarball is the tar of guests that have none: it creates archives on
// stdout and extracts them from stdin, as `kubectl cp` wants it.
//
// An archive is hostile: nothing is ever made, changed or removed outside of the
// destination, whatever names and links it has and whatever links are there.
package tarball
