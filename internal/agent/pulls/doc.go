// Package pulls owns the images on their way to this node: which image a VM may have from the store, the pulls of
// those that it may not have yet, with their turns, progress and backoff, the record of who was given access, and the
// removal of images that nothing uses.
//
// A pull belongs to the VMs that want it and ends with the last of them. VMs that name the same, with the same
// credentials, share one; of others they share results alone. Nobody waits for, or hears of, a source that he did not
// name.
//
// Whether a VM may have an image is decided in one place, State. The package reads no VirtualMachine, no pod and no
// Secret: its caller says what a VM needs, and reads the credentials. It never waits for a registry, and what it
// remembers, pulls and failures, can be lost at any line.
package pulls
