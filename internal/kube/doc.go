// Package kube is what operator and agent share in talking to the API server:
// the scheme, server-side apply of a status, and the one exit of a reconcile;
// and what makes both of them small.
package kube
