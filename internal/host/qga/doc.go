// Package qga asks the guest agent inside of a guest.
//
// Whatever answers there is hostile: replies, lists and strings are bounded,
// and what has the wrong shape is left out. It only asks; it never makes the
// guest do or write anything, and nothing of an answer is to be trusted for
// more than showing it.
package qga
