package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/gateway"
	"github.com/fieldferry/fieldferry/gateway/config"
)

// stopWithin is how long a stop may take before the process ends all the same.
// What was acknowledged is durable by then anyway.
const stopWithin = 10 * time.Second

func runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "run FILE",
		Short: "Run the gateway of a site file",
		Long: `run starts the gateway that a site file describes and runs it until it gets
SIGTERM or SIGINT. It logs to stderr.`,
		Args: args(cobra.MaximumNArgs(1)),
	}
	find := siteFile(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		path, err := find(args)
		if err != nil {
			return err
		}
		return runGateway(cmd.Context(), path, cmd.ErrOrStderr())
	}
	return cmd
}

func runGateway(ctx context.Context, path string, stderr io.Writer) error {
	c, problems := config.Load(path, config.Options{})
	for _, p := range problems {
		fmt.Fprintln(stderr, p)
	}
	if c == nil {
		return errNo
	}
	ctx, stop := untilSignal(ctx)
	defer stop()
	log := newLogger(c, stderr)
	log.Info("fieldferry starts", "version", version, "site_file", path, "data_dir", c.Gateway.DataDir)
	g, err := gateway.Open(c, gateway.Options{Logger: log, Version: version})
	if err != nil {
		return err
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	done := make(chan error, 1)
	go func() { done <- errors.Join(g.Run(ctx), g.Close()) }()
	var deadline <-chan time.Time
	stopping := ctx.Done()
	for {
		select {
		case err := <-done:
			if err == nil {
				log.Info("fieldferry has stopped")
			}
			return err
		case <-hangups:
			log.Warn("SIGHUP: this version does not reload; restart it to read the site file again")
		case <-stopping:
			stopping = nil
			deadline = time.After(stopWithin)
		case <-deadline:
			return fmt.Errorf("the gateway did not stop within %s; what was acknowledged is durable", stopWithin)
		}
	}
}

func newLogger(c *config.Config, w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: c.Gateway.Log.Level}
	if c.Gateway.Log.JSON {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}
