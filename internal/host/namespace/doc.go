// Package namespace does work in the namespaces of other processes, on threads of its own: no other goroutine of this
// process ever runs there. It opens files below the roots of others as they see them.
//
// It finds no namespace and no root, and knows nothing of what is done in one.
package namespace
