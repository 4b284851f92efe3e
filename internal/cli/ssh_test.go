package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHostKeysOfAGuestAreItsTypesAndKeysAlone(t *testing.T) {
	text := "ssh-ed25519 AAAAC3Nz root@web\necdsa-sha2-nistp256 AAAAE2Vj\n" +
		"@cert-authority * ssh-rsa AAAA\n* ssh-rsa AAAA\nssh-rsa\nssh-rsa AA,AA\nssh-rsa \x1b[2J\nssh-dss AAAA x\r\nnonsense\n"
	want := "uid ssh-ed25519 AAAAC3Nz\nuid ecdsa-sha2-nistp256 AAAAE2Vj\nuid ssh-dss AAAA\n"
	if diff := cmp.Diff(want, hostKeys("uid", text)); diff != "" {
		t.Error(diff)
	}
}
