// Package fault sorts errors by who can mend them: the user, time, or us.
//
// Adapters classify, because they know the foreign codes; everybody else wraps
// and passes on. It never logs, retries or decides.
package fault
