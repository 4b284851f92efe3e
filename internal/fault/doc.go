// Package fault sorts errors by who can correct them: the user, time (they are transient), or us.
//
// Adapters classify, because they know the foreign codes; everybody else wraps
// and passes on. What others say of an error it makes fit to be shown. It never logs, retries or decides.
package fault
