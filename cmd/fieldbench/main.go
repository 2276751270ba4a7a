// Command fieldbench measures Fieldferry on the machine it runs on. Rates swing
// with the machine and its neighbours, so each is given as a ratio to something
// plain that is measured in turns with it, in the same run.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// usageError says that the command was called wrongly.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }

// errMissed is returned when a figure misses its limit; it was printed.
var errMissed = errors.New("a figure misses its limit")

func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "fieldbench",
		Short:         "Measures Fieldferry on this machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(bufferCommand(), brokerCommand(), bridgeCommand(), modbusCommand(), serialCommand(), opcuaCommand(), serveCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	switch {
	case err == nil:
		return 0
	case errors.As(err, new(usageError)):
		fmt.Fprintf(stderr, "fieldbench: %v\n", err)
		return 2
	}
	fmt.Fprintf(stderr, "fieldbench: %v\n", err)
	return 1
}
