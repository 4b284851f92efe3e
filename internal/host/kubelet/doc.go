// Package kubelet reads how this host's kubelet is configured, from its command line and the files that this names. It
// never asks kubelet's API and changes nothing.
package kubelet
