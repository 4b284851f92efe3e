package guesttools

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUsersAreFound(t *testing.T) {
	etc := t.TempDir()
	passwd := "root:x:0:0:root:/root:/bin/bash\n# comment\n\nweb:x:1000:1000:,,,:/home/web:\nbroken:x:1\n12:x:34:56::/home/12:/bin/sh\nbad:x:-1:0::/:/bin/sh\nhuge:x:4294967295:0::/:/bin/sh\n+::::::\n"
	group := "root:x:0:\nweb:x:1000:\nwheel:x:10:root,web\nkvm:x:107:web\nbad:x:no:web\n"
	if err := errors.Join(os.WriteFile(etc+"/passwd", []byte(passwd), 0o600), os.WriteFile(etc+"/group", []byte(group), 0o600)); err != nil {
		t.Fatal(err)
	}
	root := user{name: "root", home: "/root", shell: "/bin/bash", groups: []uint32{10}}
	web := user{name: "web", home: "/home/web", shell: "/bin/sh", uid: 1000, gid: 1000, groups: []uint32{10, 107}}
	for spec, want := range map[string]user{
		"": root, "root": root, "0": root, "web": web, "1000": web,
		"web:kvm":  {name: "web", home: "/home/web", shell: "/bin/sh", uid: 1000, gid: 107},
		"web:5":    {name: "web", home: "/home/web", shell: "/bin/sh", uid: 1000, gid: 5},
		"77:web":   {name: "77", home: "/", shell: "/bin/sh", uid: 77, gid: 1000},
		"12":       {name: "12", home: "/home/12", shell: "/bin/sh", uid: 34, gid: 56},
		":wheel":   {name: "root", home: "/root", shell: "/bin/bash", gid: 10},
		"99999999": {name: "99999999", home: "/", shell: "/bin/sh", uid: 99999999},
	} {
		got, err := findUser(etc, spec)
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(user{})); err != nil || diff != "" {
			t.Errorf("%q: %v\n%s", spec, err, diff)
		}
	}
	for _, spec := range []string{"nobody", "-1", "4294967296", "4294967295", "bad", "huge", "web:nogroup", "web:", "web:-1", "broken", "../web"} {
		if got, err := findUser(etc, spec); err == nil {
			t.Errorf("%q is %+v", spec, got)
		}
	}
	if got, err := findUser(t.TempDir(), ""); err != nil || got.home != "/" || got.uid != 0 {
		t.Errorf("root of a guest without /etc/passwd: %+v, %v", got, err)
	}
}
