// Package worker makes and seeds the disks on volumes, in a confined process of its own: `berth-agent worker`.
//
// It owns what stands in a volume, and is all of Berth that reads or writes a byte of one: a volume may hang, and an
// image is hostile. It knows a directory and an image as descriptors, speaks lines of JSON, and never opens what they do
// not lead to, changes an owner, or writes over data that it finds.
package worker
