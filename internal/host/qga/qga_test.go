package qga

import (
	"context"
	"encoding/json"
	"errors"
	"maps"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
)

// guest answers commands by their name.
type guest map[string]string

func (g guest) AgentCommand(_ context.Context, command string) (string, error) {
	name := strings.Split(command, `"`)[3]
	reply, ok := g[name]
	if !ok {
		return "", fault.NewTransient(v1alpha1.ReasonGuestAgentNotConnected, errors.New("no agent"))
	}
	return reply, nil
}

// debian is what qemu-ga 7.2 says on Debian 12.
var debian = guest{
	"guest-info":                   `{"return":{"version":"7.2.22","supported_commands":[{"enabled":true,"name":"guest-ping","success-response":true}]}}`,
	"guest-get-host-name":          `{"return":{"host-name":"web"}}`,
	"guest-get-osinfo":             `{"return":{"name":"Debian GNU/Linux","kernel-release":"6.1.0-56-cloud-amd64","version":"12 (bookworm)","pretty-name":"Debian GNU/Linux 12 (bookworm)","version-id":"12","kernel-version":"#1 SMP","machine":"x86_64","id":"debian"}}`,
	"guest-network-get-interfaces": `{"return":[{"name":"lo","ip-addresses":[{"ip-address-type":"ipv4","ip-address":"127.0.0.1","prefix":8}],"hardware-address":"00:00:00:00:00:00"},{"name":"enp0s2","ip-addresses":[{"ip-address-type":"ipv4","ip-address":"10.0.2.2","prefix":24},{"ip-address-type":"ipv6","ip-address":"fe80::1%enp0s2","prefix":64}],"hardware-address":"02:00:00:00:00:01"}]}`,
}

func with(name, reply string) guest {
	g := maps.Clone(debian)
	g[name] = reply
	return g
}

var debianInfo = Info{
	AgentVersion: "7.2.22", Hostname: "web",
	OS: OS{ID: "debian", PrettyName: "Debian GNU/Linux 12 (bookworm)", Kernel: "6.1.0-56-cloud-amd64"},
}

func TestAsk(t *testing.T) {
	edited := func(edit func(*Info)) Info { i := debianInfo; edit(&i); return i }
	for name, tc := range map[string]struct {
		guest guest
		want  Info
		fails bool
	}{
		"a Debian":                       {guest: debian, want: debianInfo},
		"no agent":                       {guest: guest{}, fails: true},
		"an agent that forbids osinfo":   {with("guest-get-osinfo", `{"error":{"class":"CommandNotFound","desc":"disabled"}}`), edited(func(i *Info) { i.OS = OS{} }), false},
		"a host name of another shape":   {with("guest-get-host-name", `{"return":[1,2]}`), edited(func(i *Info) { i.Hostname = "" }), false},
		"a host name that is a number":   {with("guest-get-host-name", `{"return":{"host-name":7}}`), edited(func(i *Info) { i.Hostname = "" }), false},
		"a host name without end":        {with("guest-get-host-name", `{"return":{"host-name":"`+strings.Repeat("x", 9999)+`"}}`), edited(func(i *Info) { i.Hostname = strings.Repeat("x", maxText) }), false},
		"a host name for terminals":      {with("guest-get-host-name", `{"return":{"host-name":"\u001b[2Jweb\r\n\u202e"}}`), edited(func(i *Info) { i.Hostname = "[2Jweb" }), false},
		"a reply without end":            {guest: with("guest-get-osinfo", strings.Repeat(" ", maxReply+1)), fails: true},
		"a reply that is no JSON":        {guest: with("guest-info", `{"return":`), fails: true},
		"nothing":                        {guest: with("guest-info", ``), fails: true},
		"a null":                         {guest: with("guest-info", `{"return":null}`), fails: true},
		"an agent that does not know it": {guest: with("guest-info", `{"error":{}}`), fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Ask(t.Context(), tc.guest)
			if tc.fails != (err != nil) || err != nil && fault.ReasonOf(err) != v1alpha1.ReasonGuestAgentNotConnected {
				t.Fatalf("error %v", err)
			}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("info (-want +got):\n%s", diff)
			}
		})
	}
}

// TestRunShell: the command reaches the guest's shell as it is, and a refusal is told.
func TestRunShell(t *testing.T) {
	const command = `mkdir -p "/run/x" && { echo 'a <b>'; }`
	var sent struct {
		Execute   string
		Arguments struct {
			Path string
			Arg  []string
		}
	}
	for name, tc := range map[string]struct {
		reply string
		fails bool
	}{
		"it is run":                     {`{"return":{"pid":4711}}`, false},
		"the agent may run nothing":     {`{"error":{"class":"CommandNotFound","desc":"Command guest-exec has been disabled"}}`, true},
		"an agent of another shape":     {`{"return":[{"pid":{}}]}`, true},
		"an agent that says no end":     {strings.Repeat("x", maxReply+1), true},
		"an agent that answers nothing": {``, true},
	} {
		t.Run(name, func(t *testing.T) {
			err := RunShell(t.Context(), commanded(func(line string) string {
				if err := json.Unmarshal([]byte(line), &sent); err != nil {
					t.Errorf("it was sent %s: %v", line, err)
				}
				return tc.reply
			}), command)
			if tc.fails != (err != nil) || err != nil && fault.ReasonOf(err) != v1alpha1.ReasonGuestAgentNotConnected {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff([]string{"-c", command}, sent.Arguments.Arg); diff != "" || sent.Execute != "guest-exec" || sent.Arguments.Path != "/bin/sh" {
				t.Errorf("it was sent %+v", sent)
			}
		})
	}
}

// commanded answers commands.
type commanded func(command string) string

func (c commanded) AgentCommand(_ context.Context, command string) (string, error) {
	return c(command), nil
}

func FuzzReply(f *testing.F) {
	for _, reply := range debian {
		f.Add(reply)
	}
	f.Add(`{"return":{"host-name":"\u001b]0;x\u0007"}}`)
	f.Add(`{"return":[{"name":1,"ip-addresses":[{"ip-address":"::1","prefix":9999}]}]}`)
	f.Fuzz(func(t *testing.T, reply string) {
		g := guest{"guest-info": reply, "guest-get-host-name": reply, "guest-get-osinfo": reply, "guest-network-get-interfaces": reply}
		info, _ := Ask(t.Context(), g)
		for _, s := range []string{info.AgentVersion, info.Hostname, info.OS.ID, info.OS.PrettyName, info.OS.Kernel} {
			if len([]rune(s)) > maxText || strings.ContainsFunc(s, unicode.IsControl) {
				t.Errorf("%q is not fit to be shown", s)
			}
		}
	})
}
