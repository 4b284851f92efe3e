// Package domain translates between a guest and libvirt's domain XML.
//
// It owns every word that Berth says to libvirt about a machine: XML writes it
// from typed structs, and Facts reads back from a live domain whose it is and
// what the agent needs to reach it. It is pure: it opens nothing and never
// decides whether a guest should run. Raw QEMU options have no way in.
package domain
