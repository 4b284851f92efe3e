// Package namespace does work in the namespaces of other processes, on threads of its own: no other goroutine of this
// process ever runs there.
//
// It finds no namespace, and knows nothing of what is done in one.
package namespace
