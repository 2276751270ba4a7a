package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/fieldferry/fieldferry/localbroker/access"
)

// passwd is the command: it sets or deletes the password of one user.
type passwd struct {
	create, remove, stdin, json bool
	password                    string
	given                       bool // password is
	iterations                  int
}

func passwdCommand() *cobra.Command {
	var p passwd
	cmd := &cobra.Command{
		Use:   "passwd FILE USER",
		Short: "Set or delete a user's password in a password file",
		Long: `passwd adds a user to a password file (broker.password_file of the site file),
changes the user's password, or with -D deletes the user. Mosquitto reads such a
file as well, and what mosquitto_passwd wrote can be changed here.

It asks for the password, twice and without showing it; --stdin takes the first line
of the standard input. -b takes it from the command line, where other users of this
machine can see it. Everything else in the file stays as it is. The file is replaced
at one stroke, and only its owner may read it then; a file that its group could read
and others could not stays so.`,
		Args: args(cobra.ExactArgs(2)),
	}
	f := cmd.Flags()
	f.BoolVarP(&p.create, "create", "c", false, "create the file, which must not be there")
	f.BoolVarP(&p.remove, "delete", "D", false, "delete the user")
	f.StringVarP(&p.password, "password", "b", "", "the `PASSWORD`")
	f.BoolVar(&p.stdin, "stdin", false, "read the password from the standard input")
	f.IntVar(&p.iterations, "iterations", access.DefaultIterations, "what guessing, and each login, costs")
	f.BoolVar(&p.json, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		p.given = f.Changed("password")
		if err := p.check(args[1]); err != nil {
			return usageError{err}
		}
		return p.run(cmd, args[0], args[1])
	}
	return cmd
}

// check says what is wrong with how the command was called.
func (p *passwd) check(user string) error {
	switch {
	case p.remove && (p.create || p.given || p.stdin):
		return errors.New("passwd: -D goes with none of -c, -b and --stdin")
	case p.given && p.stdin:
		return errors.New("passwd: the password comes from -b or from --stdin, not from both")
	case p.iterations < 1 || p.iterations > access.MaxIterations:
		return fmt.Errorf("passwd: --iterations %d is not between 1 and %d", p.iterations, access.MaxIterations)
	}
	if err := access.CheckUser(user); err != nil {
		return fmt.Errorf("passwd: %w", err)
	}
	if p.given {
		if err := access.CheckPassword([]byte(p.password)); err != nil {
			return fmt.Errorf("passwd: %w", err)
		}
	}
	return nil
}

func (p *passwd) run(cmd *cobra.Command, path, user string) error {
	// Nobody wants to type a password twice to hear that the file is not there.
	switch _, err := os.Stat(path); {
	case p.create && err == nil:
		return fmt.Errorf("%s is there already; leave -c out to change it", path)
	case !p.create && errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no %s; create it with -c", path)
	}
	hash := ""
	if !p.remove {
		password, err := p.ask(cmd, user)
		if err != nil {
			return err
		}
		if hash, err = access.NewHash(password, p.iterations); err != nil {
			return err
		}
	}
	action := ""
	before, after, err := replaceFile(path, p.create, func(text []byte) ([]byte, error) {
		var was bool
		if p.remove {
			if text, was = access.DeleteUser(text, user); !was {
				return nil, fmt.Errorf("there is no user %q in %s", user, path)
			}
			action = "deleted"
			return text, nil
		}
		if text, was = access.SetUser(text, user, hash); was {
			action = "changed"
		} else {
			action = "added"
		}
		return text, nil
	})
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w; run this as the user who owns the file and may write in its folder", err)
	case err != nil:
		return err
	}
	if before != 0 && before != after {
		fmt.Fprintf(cmd.ErrOrStderr(), "fieldferry: others could read %s (mode %04o); its mode is %04o now, so the gateway must run as its owner\n", path, before, after)
	}
	if p.json {
		return printJSON(cmd.OutOrStdout(), map[string]string{"file": path, "user": user, "action": action})
	}
	what := map[string]string{"added": "added %s to %s", "changed": "changed the password of %s in %s", "deleted": "deleted %s from %s"}[action]
	fmt.Fprintf(cmd.OutOrStdout(), what+"; a gateway that runs reads it when it is started again\n", user, path)
	return nil
}

// ask gets the password from where it is to come from.
func (p *passwd) ask(cmd *cobra.Command, user string) ([]byte, error) {
	if p.given {
		return []byte(p.password), nil
	}
	var password []byte
	in, isFile := cmd.InOrStdin().(*os.File)
	switch {
	case p.stdin:
		line, err := bufio.NewReader(io.LimitReader(cmd.InOrStdin(), 64<<10)).ReadBytes('\n')
		if err != nil && err != io.EOF {
			return nil, fmt.Errorf("read the password: %w", err)
		}
		password = bytes.TrimRight(line, "\r\n")
	case !isFile || !term.IsTerminal(int(in.Fd())):
		return nil, usageError{errors.New("passwd: there is no terminal to ask for the password; give it with --stdin")}
	default:
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		var again []byte
		var err error
		if password, err = prompt(ctx, in, cmd.ErrOrStderr(), fmt.Sprintf("Password of %s: ", user)); err != nil {
			return nil, err
		}
		if err := access.CheckPassword(password); err != nil {
			return nil, fmt.Errorf("%w; nothing was changed", err)
		}
		if again, err = prompt(ctx, in, cmd.ErrOrStderr(), "Once more: "); err != nil {
			return nil, err
		}
		if !bytes.Equal(password, again) {
			return nil, errors.New("the two are not the same; nothing was changed")
		}
	}
	if err := access.CheckPassword(password); err != nil {
		return nil, fmt.Errorf("%w; nothing was changed", err)
	}
	return password, nil
}

// prompt asks on a terminal for something that is not shown.
func prompt(ctx context.Context, in *os.File, out io.Writer, question string) ([]byte, error) {
	fd := int(in.Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return nil, fmt.Errorf("ask for the password: %w", err)
	}
	fmt.Fprint(out, question)
	type answer struct {
		text []byte
		err  error
	}
	answers := make(chan answer, 1)
	go func() { // ends with an answer or with the process
		text, err := term.ReadPassword(fd)
		answers <- answer{text, err}
	}()
	select {
	case a := <-answers:
		fmt.Fprintln(out)
		if a.err != nil {
			return nil, fmt.Errorf("ask for the password: %w", a.err)
		}
		return a.text, nil
	case <-ctx.Done():
		fmt.Fprintln(out)
		return nil, errors.Join(errors.New("interrupted; nothing was changed"), term.Restore(fd, state))
	}
}
