package tarball

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
)

// options are those of tar that this one has.
type options struct {
	create, extract bool
	dir             string
	paths           []string
	noTimes         bool // -m
	noModes         bool // --no-same-permissions
	noOwners        bool // --no-same-owner
	archive         string
}

// Run is tar with its arguments. It returns tar's exit code: 2 if anything went wrong, which stderr tells.
func Run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	code := 0
	complain := func(err error) {
		code = 2
		fmt.Fprintf(stderr, "tar: %v\n", err)
	}
	o, err := parse(args)
	switch {
	case err != nil:
		complain(fmt.Errorf("%w; this is Berth's own small tar, as the guest has none", err))
	case o.create:
		create(o, stdout, complain)
	default:
		extract(o, stdin, complain)
	}
	return code
}

func parse(args []string) (o options, err error) {
	o = options{dir: ".", noOwners: os.Geteuid() != 0}
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") { // tar cf - PATH
		args = append([]string{"-" + args[0]}, args[1:]...)
	}
	for len(args) > 0 {
		arg := args[0]
		args = args[1:]
		switch {
		case arg == "--":
			o.paths, args = append(o.paths, args...), nil
		case arg == "--no-same-permissions":
			o.noModes = true
		case arg == "--no-same-owner":
			o.noOwners = true
		case strings.HasPrefix(arg, "--") || !strings.HasPrefix(arg, "-"):
			if arg[0] == '-' {
				return o, fmt.Errorf("option %s is unknown", arg)
			}
			o.paths = append(o.paths, arg)
		default:
			if args, err = o.letters(arg[1:], args); err != nil {
				return o, err
			}
		}
	}
	switch {
	case o.create == o.extract:
		return o, errors.New("say either -c or -x")
	case o.archive != "-":
		return o, errors.New("say -f -: archives go to stdout and come from stdin")
	case o.create == (len(o.paths) == 0):
		return o, errors.New("name what to archive, and for -x nothing: all is extracted")
	}
	return o, nil
}

// letters reads a bundle of options, and takes their values from the arguments behind it.
func (o *options) letters(letters string, args []string) ([]string, error) {
	for i, letter := range letters {
		switch letter {
		case 'c':
			o.create = true
		case 'x':
			o.extract = true
		case 'm':
			o.noTimes = true
		case 'p': // so it is for root anyway
		case 'o':
			o.noOwners = true
		case 'f', 'C':
			value := letters[i+1:]
			if value == "" && len(args) > 0 {
				value, args = args[0], args[1:]
			}
			if value == "" {
				return nil, fmt.Errorf("option -%c needs a value", letter)
			}
			if letter == 'C' {
				o.dir = value
			} else {
				o.archive = value
			}
			// what was behind the letter is its value
			if letters[i+1:] == value {
				return args, nil
			}
		default:
			return nil, fmt.Errorf("option -%c is unknown", letter)
		}
	}
	return args, nil
}
