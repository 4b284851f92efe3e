// Package proxy stands between two real parts and spoils what they say to each other: late, cut off, lost or wrong.
package proxy
