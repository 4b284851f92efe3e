// Package fault sorts errors by who can correct them: the user, time (they are transient), or us.
//
// Adapters classify, because they know the foreign codes; everybody else wraps
// and passes on. It never logs, retries or decides.
package fault
