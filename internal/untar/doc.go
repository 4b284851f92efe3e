// Package untar writes the members of a tar stream below a directory: for guests
// without a tar of their own, and for users who copy out of a guest.
//
// An archive is hostile: nothing is ever made, changed or removed outside of that
// directory, whatever names and links it has and whatever links are there.
package untar
