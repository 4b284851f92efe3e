// Package kube is what operator and agent share in talking to the API server: the scheme, server-side apply of a status, and
// the one exit of a reconcile; and what keeps their memory small.
package kube
