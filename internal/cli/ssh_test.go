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

func TestWordsForSSH(t *testing.T) {
	for _, c := range []struct{ args, options, words []string }{
		{nil, nil, nil},
		{[]string{"uptime", "-p"}, []string{}, []string{"uptime", "-p"}},
		{[]string{"-L", "8080:localhost:80", "-N"}, []string{"-L", "8080:localhost:80", "-N"}, nil},
		{[]string{"-vo", "A=b", "ls"}, []string{"-vo", "A=b"}, []string{"ls"}},
		{[]string{"-oA=b", "ls"}, []string{"-oA=b"}, []string{"ls"}},
		{[]string{"-4", "--", "-x"}, []string{"-4"}, []string{"-x"}},
	} {
		options, words := sshArgs(c.args)
		if !cmp.Equal(options, c.options) || !cmp.Equal(words, c.words) {
			t.Errorf("sshArgs(%q) = %q, %q, want %q, %q", c.args, options, words, c.options, c.words)
		}
	}
}
