package volume

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func TestGrantInAList(t *testing.T) {
	for _, tt := range []struct {
		name       string
		have, want acl // want is nil if nothing is to be done
	}{
		{"of the owner's group alone", ofMode(0o660), acl{{aclUserObj, 6, 0}, {aclGroupObj, 6, 0}, {aclGroup, 6, 9}, {aclMask, 6, 0}, {aclOther, 0, 0}}},
		{"of everybody", ofMode(0o666), nil},
		{"granted before", acl{{aclUserObj, 6, 0}, {aclGroupObj, 6, 0}, {aclGroup, 6, 9}, {aclMask, 6, 0}, {aclOther, 0, 0}}, nil},
		{
			"granted half",
			acl{{aclUserObj, 6, 0}, {aclGroupObj, 6, 0}, {aclGroup, 4, 9}, {aclMask, 6, 0}, {aclOther, 6, 0}},
			acl{{aclUserObj, 6, 0}, {aclGroupObj, 6, 0}, {aclGroup, 6, 9}, {aclMask, 6, 0}, {aclOther, 6, 0}},
		},
		{
			"others keep what the mask lets through",
			acl{{aclUserObj, 6, 0}, {aclUser, 6, 7}, {aclGroupObj, 6, 0}, {aclGroup, 6, 9}, {aclGroup, 4, 8}, {aclMask, 4, 0}, {aclOther, 0, 0}},
			acl{{aclUserObj, 6, 0}, {aclUser, 4, 7}, {aclGroupObj, 4, 0}, {aclGroup, 4, 8}, {aclGroup, 6, 9}, {aclMask, 6, 0}, {aclOther, 0, 0}},
		},
	} {
		got, differs := tt.have.grant(9, 6)
		if differs != (tt.want != nil) || differs && cmp.Diff(tt.want, got, cmp.AllowUnexported(aclEntry{})) != "" {
			t.Errorf("%s: %v, %v", tt.name, got, differs)
		}
	}
}

func FuzzDecodeACL(f *testing.F) {
	f.Add(ofMode(0o640).encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if l, err := decodeACL(b); err == nil && len(l.encode()) != len(b) {
			t.Errorf("%v", l)
		}
	})
}

func TestGrant(t *testing.T) {
	r := newRig(t)
	v := r.volumes()
	const state = "/var/lib/libvirt/qemu"
	r.in(r.ns, func() error { // which are the test's own
		return errors.Join(unix.Mount("dev", "/dev", "tmpfs", 0, "mode=755"), unix.Mount("lib", "/var/lib", "tmpfs", 0, "mode=755"))
	})
	if err := v.Grant(t.Context(), group); err != nil {
		t.Errorf("where neither is: %v", err)
	}
	r.in(r.ns, func() error {
		return errors.Join(os.WriteFile("/dev/kvm", nil, 0o600), os.Chmod("/dev/kvm", 0o660),
			os.MkdirAll(state, 0o755), os.Chmod(state, 0o750), os.WriteFile(state+"/x", nil, 0o600), os.Chmod(state+"/x", 0o666))
	})
	for _, want := range []string{"", "kvm\nstate\n", "kvm\nstate\n"} {
		said, stop := r.qemu(userA, "(true <>/dev/kvm) && echo kvm; (true <>"+state+"/x) && echo state")
		stop()
		if denied := strings.Count(said, "ermission denied"); denied != 0 && want != "" || denied != 2 && want == "" || want != "" && said != want {
			t.Errorf("with the group it opens %q, want %q", said, want)
		}
		if err := v.Grant(t.Context(), group); err != nil {
			t.Error(err)
		}
	}
	r.in(r.ns, func() error {
		for path, mode := range map[string]os.FileMode{"/dev/kvm": 0o660, state: 0o750 | os.ModeDir} { // the mask shows as the group's
			if info, err := os.Stat(path); err != nil || info.Mode() != mode {
				t.Errorf("%s: %v, %v", path, info, err)
			}
		}
		return nil
	})
}
