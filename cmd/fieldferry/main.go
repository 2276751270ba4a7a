// Command fieldferry is an edge gateway: it reads Modbus, OPC UA and serial
// devices, runs the site's MQTT broker, and carries everything to an upstream MQTT
// cluster, losing nothing on the way.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// version is set by the Makefile.
var version = "dev"

// Exit codes.
const (
	exitNo    = 1 // the answer is no, or the command failed
	exitUsage = 2 // it was called wrongly
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// usageError says that the command was called wrongly.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }

// errNo is the answer no: everything that is to be said was printed.
var errNo = errors.New("no")

func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(context.Background())
	var usage usageError
	switch {
	case err == nil:
		return 0
	case errors.Is(err, errNo):
		return exitNo
	case errors.As(err, &usage):
		about := "how it is used"
		if cmd.HasSubCommands() {
			about = "the commands"
		}
		fmt.Fprintf(stderr, "fieldferry: %v\nRun '%s --help' for %s.\n", err, cmd.CommandPath(), about)
		return exitUsage
	}
	fmt.Fprintf(stderr, "fieldferry: %v\n", err)
	return exitNo
}

// untilSignal is a context that SIGTERM or SIGINT ends. What is written to a
// pipe that nobody reads any more is an error from then on, not the end of the
// process.
func untilSignal(ctx context.Context) (context.Context, context.CancelFunc) {
	signal.Ignore(syscall.SIGPIPE)
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "fieldferry",
		Short: "Carries data from the field to an MQTT cluster, and loses none of it",
		Long: `fieldferry reads Modbus and OPC UA devices, runs the site's MQTT broker, and carries
everything to an upstream MQTT cluster with store-and-forward.

One YAML file configures it. Start with 'fieldferry demo', which needs nothing,
then 'fieldferry check FILE' and 'fieldferry run FILE'.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("there is no command %q%s", args[0], suggestion(cmd, args[0]))}
			}
			return cmd.Help()
		},
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{flagError(err)} })
	root.AddCommand(runCommand(), checkCommand(), demoCommand(), tailCommand(), pubCommand(), bufferCommand(), passwdCommand(), certsCommand(), planCommand(), readCommand(), writeCommand(), scanCommand(), browseCommand(), opcuaCommand(), simulateCommand(), sniffCommand(), statusCommand(), versionCommand())
	return root
}

func suggestion(cmd *cobra.Command, word string) string {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		return fmt.Sprintf(" (did you mean %q?)", near[0])
	}
	return ""
}

// args makes what cobra says of arguments an error in usage that says which are meant.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		if _, takes, any := strings.Cut(cmd.Use, " "); any && !cmd.HasSubCommands() {
			return usageError{fmt.Errorf("write it as %s %s", cmd.CommandPath(), takes)}
		}
		return usageError{fmt.Errorf("%s: %w", cmd.CommandPath(), err)}
	}
}

// flagError says what is wrong with the value of a flag without naming what parses it.
func flagError(err error) error {
	var n *strconv.NumError
	var flag *pflag.InvalidValueError
	if !errors.As(err, &n) || !errors.As(err, &flag) {
		return err
	}
	what := "is no number"
	if errors.Is(n, strconv.ErrRange) {
		what = "is beyond what it can be"
	}
	return fmt.Errorf("--%s: %q %s", flag.GetFlag().Name, flag.GetValue(), what)
}

func versionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  args(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			goVersion := "unknown"
			if info, ok := debug.ReadBuildInfo(); ok {
				goVersion = info.GoVersion
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), map[string]string{"version": version, "go": goVersion})
			}
			fmt.Fprintf(cmd.OutOrStdout(), "fieldferry %s (%s)\n", version, goVersion)
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
