// Package pulls owns the images on their way to this node: which image a VM may have from the store, the pulls of
// those that it may not have yet, with their progress and backoff, the record of who was given access, and the
// removal of images that nothing uses.
//
// Whether a VM may have an image is decided in one place, State. The package reads no VirtualMachine, no pod and no
// Secret: its caller says what a VM needs, and reads the credentials. It never waits for a registry, and what it
// remembers, pulls and failures, can be lost at any line.
package pulls
