// Package qga talks with the guest agent inside of a guest, at the pseudo-terminal that QEMU has for its port (Port).
//
// Whatever answers there is hostile: replies, lists and strings are bounded, and what has the wrong shape is left out. It
// asks, and at most has the guest power off; it never makes it do or write anything else, and nothing of an answer is to be
// trusted for more than showing it.
package qga
