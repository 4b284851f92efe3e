// Package socket listens on a name that others of the pod could have taken, and
// calls a function for each connection, and copies what comes. It needs no package net.
package socket
