// Package rfb reads one picture of a screen by the RFB protocol 3.8 (RFC 6143), as QEMU's VNC server speaks it. It never
// types, points or authenticates, and takes the server for hostile: what it says of sizes is bounded before anything is made
// of it.
package rfb
