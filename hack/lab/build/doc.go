// Package build makes what a lab runs: the binaries of Kubernetes and its
// friends from Go modules, guests from Debian packages, and images out of both,
// without a container engine. All of it is kept in a cache outside the clone,
// each part under a key of everything it was made from.
//
// It never starts a lab's part, and it never changes a machine but by Debian packages.
package build
