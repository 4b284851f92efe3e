// Package tarball is the tar of guests that have none: it creates archives on
// stdout and extracts them from stdin, as `kubectl cp` wants it.
package tarball
