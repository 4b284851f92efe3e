// Package v1alpha1 holds the nouns of Berth: the kinds that users apply, their
// status, and the reasons that conditions, Events and metrics share.
//
// It imports nothing of Berth's own, so anybody can depend on it.
//
// +kubebuilder:object:generate=true
// +kubebuilder:ac:generate=true
// +kubebuilder:ac:output:package=applyconfiguration
// +groupName=berth.dev
package v1alpha1
