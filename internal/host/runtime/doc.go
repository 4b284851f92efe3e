// Package runtime asks the node's container runtime, over its CRI socket, which
// container of a pod is the present one and which process is its first.
//
// It only reads: kubelet alone starts and ends containers. What a pod can write
// about itself, such as an environment or a file, is never asked for.
package runtime
