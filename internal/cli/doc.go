// Package cli is kubectl vm: Docker's verbs for VirtualMachines, a file per verb or family of verbs.
//
// It is a client of the API like any other: it reads and writes VirtualMachines, Services and pods, and reaches a guest
// by the pod's log, attach, exec and portforward alone. What kubectl does already is kubectl's own command, with a
// VirtualMachine's name in place of a pod's. It keeps nothing, but for the host keys of guests that ssh has seen.
package cli
