// Package image turns the name of an image into its digest, and its digest into
// the disk, or the kernel, that it holds: as a stream, checked against the digest.
//
// Registries and images are hostile: every size, count and wait is bounded, a file
// in a layer is matched by name and never extracted by path, and what was
// streamed counts only when the whole layer has matched its digest. It stores
// nothing, retries nothing but a layer that was cut off, and never tells a credential to a log or an error.
package image
