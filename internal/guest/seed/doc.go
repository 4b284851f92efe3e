// Package seed writes the first-boot data of a guest as the bytes of an image that cloud-init's NoCloud data source finds by its
// label, and likewise the disk with the guest program, which that data starts.
//
// The same input gives the same bytes. It never reads user data: that is between the user and the guest.
package seed
