// Package socket listens on a name that others of the pod could have taken, and
// calls a function for each connection. It needs no package net.
package socket
