// Package guestlink runs commands of a guest over one stream of bytes, the port dev.berth.guest.0: the host's side (the
// shim) opens streams, the guest's side (the guest program) runs a command for each. It knows no port and no process.
//
// A frame is a magic byte, a type, a stream's number (16 bits), a length (32 bits, big endian, at most MaxFrame), and so
// many bytes. Unknown types are skipped. A stream has a window of Window bytes in each direction, so the one reader of a
// link never waits for a stream: what a sink has not taken is at most a window.
//
// A link is up once both sides have read their own nonce in the other's hello. A side with a new nonce, or one that breaks
// framing, ends all streams. A side that is not up looks for the next hello at any byte; one that starts sends so much
// padding before its hello that half a frame of its predecessor is filled up.
//
// Neither side trusts the other: what it can cause is bounded by the number of streams and their windows.
package guestlink
