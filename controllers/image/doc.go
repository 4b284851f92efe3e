// Package image is the operator's part in a VirtualMachineImage: it makes a porter for each node that is to have the image and
// has it not, as the node's VirtualMachineHost tells, and reads from its end what has become of the pull.
//
// What the image's name means is resolved once, by one porter; the others are given its digest.
package image
