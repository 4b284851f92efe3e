// Package diskformat reads and writes the headers of disk images.
//
// What it reads is hostile: it decides from a few bounded reads whether an image
// is a disk that stands for itself, before any other program opens it. It never
// reads guest data, opens a file, or follows what a header names.
package diskformat
