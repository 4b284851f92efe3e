// Package dhcp gives the guest's pod interface its one lease, over a socket that the agent opened on the guest's tap.
//
// It answers one client about one address, keeps no state, and ignores what it
// cannot read. The shim, and so the guest, lives on without it.
package dhcp
