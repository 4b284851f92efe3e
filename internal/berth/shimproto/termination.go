package shimproto

import "strings"

// TerminationMessage is what the shim of a guest that ended so leaves to kubelet as its container's termination message.
func (e Exit) TerminationMessage() string {
	if e.Reason == "" {
		return e.Message
	}
	return strings.TrimSuffix(e.Reason+": "+e.Message, ": ")
}

// ParseTerminationMessage takes one apart again. What it calls the reason is one only if the reader knows it.
func ParseTerminationMessage(text string) (reason, message string) {
	reason, message, _ = strings.Cut(text, ": ")
	return reason, message
}
