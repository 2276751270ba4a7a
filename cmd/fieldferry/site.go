package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// siteFile adds -c and returns what finds the site file: the flag or the only
// argument.
func siteFile(cmd *cobra.Command) func(args []string) (string, error) {
	path := cmd.Flags().StringP("config", "c", "", "the site `FILE`")
	return func(args []string) (string, error) {
		switch {
		case *path != "" && len(args) == 0:
			return *path, nil
		case *path == "" && len(args) == 1:
			return args[0], nil
		}
		return "", usageError{fmt.Errorf("%s: which site file? Give it as the argument or with -c", cmd.CommandPath())}
	}
}

// problem is a problem of a site file as JSON.
type problem struct {
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	Col  int    `json:"col,omitempty"`
	Text string `json:"text"`
}

func checkCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Say everything that is wrong with a site file",
		Long: `check reads a site file, and the password_file and acl_file that it names, and
prints every mistake in them as FILE:LINE:COL: text, then warnings. It exits with 1
if there is a mistake.`,
		Args: args(cobra.MaximumNArgs(1)),
	}
	find := siteFile(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := find(args)
		if err != nil {
			return err
		}
		return check(cmd.OutOrStdout(), path, asJSON)
	}
	return cmd
}

func check(w io.Writer, path string, asJSON bool) error {
	c, problems := config.Load(path, config.Options{})
	if c != nil {
		problems = append(problems, gateway.Check(c)...)
		// The file is good, but this version cannot run it all.
		for _, p := range gateway.Unsupported(c) {
			p.Warning = true
			problems = append(problems, p)
		}
		slices.SortStableFunc(problems, func(a, b config.Problem) int {
			return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
		})
	}
	var mistakes, warnings []problem
	for _, p := range problems {
		one := problem{p.File, p.Line, p.Col, p.Text}
		if p.Warning {
			warnings = append(warnings, one)
		} else {
			mistakes = append(mistakes, one)
		}
	}
	var answer error
	if len(mistakes) > 0 {
		answer = errNo
	}
	if asJSON {
		out := struct {
			File     string    `json:"file"`
			OK       bool      `json:"ok"`
			Errors   []problem `json:"errors"`
			Warnings []problem `json:"warnings"`
		}{path, answer == nil, append([]problem{}, mistakes...), append([]problem{}, warnings...)}
		return errors.Join(printJSON(w, out), answer)
	}
	for _, severe := range []bool{true, false} {
		for _, p := range problems {
			if p.Warning != severe {
				fmt.Fprintln(w, p)
			}
		}
	}
	if answer == nil {
		fmt.Fprintf(w, "%s: no mistakes, %s\n", path, count(len(warnings), "warning"))
	}
	return answer
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
