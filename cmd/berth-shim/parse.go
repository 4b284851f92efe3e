package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/berth-dev/berth/internal/shim/client"
)

// verbs of clients.
var verbs = map[string]client.Kind{"exec": client.Exec, "probe": client.Readiness, "reset": client.Reset, "nmi": client.NMI}

// parse reads a client's command line. Package flag would double what a client costs.
func parse(args []string) (r client.Request, err error) {
	verb, args := args[0], args[1:]
	var known bool
	if r.Kind, known = verbs[verb]; !known {
		return r, fmt.Errorf("%q is no command of berth-shim", verb)
	}
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		flag, value := args[0], ""
		args = args[1:]
		if flag == "--" {
			break
		}
		if verb == "exec" && len(flag) == 2 && strings.Contains("uwe", flag[1:]) {
			if len(args) == 0 {
				return r, fmt.Errorf("flag %s needs a value", flag)
			}
			value, args = args[0], args[1:]
		}
		switch verb + " " + flag {
		case "exec -u":
			r.User = value
		case "exec -w":
			r.Dir = value
		case "exec -e":
			if strings.IndexByte(value, '=') <= 0 {
				return r, fmt.Errorf("%q is not KEY=VALUE", value)
			}
			r.Env = append(r.Env, value)
		case "exec -d", "exec --detach":
			r.Detached = true
		case "probe --readiness", "probe --startup":
			r.Kind = client.Readiness
		case "probe --liveness":
			r.Kind = client.Liveness
		default:
			return r, fmt.Errorf("berth-shim %s has no flag %q", verb, flag)
		}
	}
	r.Args = args
	if takesCommand := r.Kind <= client.Liveness; takesCommand != (len(args) > 0) {
		if takesCommand {
			return r, errors.New("a command to run in the guest is missing")
		}
		return r, fmt.Errorf("berth-shim %s takes no arguments", verb)
	}
	return r, nil
}
