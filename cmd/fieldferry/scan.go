package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters/modbus"
)

func scanCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "scan",
		Short: "Find devices",
		Args:  args(cobra.NoArgs),
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(scanModbusCommand())
	return cmd
}

func scanModbusCommand() *cobra.Command {
	var to target
	var asJSON bool
	var units string
	cmd := &cobra.Command{
		Use:   "modbus ADDRESS",
		Short: "Find the units of a line or a host, and what they say they are",
		Long: `scan modbus asks each unit number for one register, and those that answer, also
with an exception, for their identification (function 43/14). It only reads. It
exits with 1 if it finds none.

  fieldferry scan modbus 10.4.1.7
  fieldferry scan modbus /dev/ttyUSB0 --baud 9600 --units 1-32`,
		Args: args(cobra.ExactArgs(1)),
	}
	to.flags(cmd.Flags(), 300*time.Millisecond)
	cmd.Flags().StringVar(&units, "units", "1-247", "the unit numbers to try, as 1-247 or 1,5,7-9")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		ids, err := unitRange(units)
		if err != nil {
			return usageError{err}
		}
		c, err := to.config(args[0])
		if err != nil {
			return err
		}
		client, err := dial(ctx, c)
		if err != nil {
			return err
		}
		defer client.Close()
		return scan(ctx, client, ids, asJSON, cmd.OutOrStdout(), cmd.ErrOrStderr())
	}
	return cmd
}

// foundUnit is a unit that answers.
type foundUnit struct {
	Unit     int             `json:"unit"`
	Answer   string          `json:"answer"` // to a read of holding register 0
	Identity modbus.Identity `json:"identity"`
}

func scan(ctx context.Context, client *modbus.Client, ids []int, asJSON bool, out, stderr io.Writer) error {
	found := []foundUnit{}
	for _, id := range ids {
		if ctx.Err() != nil {
			break
		}
		unit := foundUnit{Unit: id, Answer: "value"}
		_, err := client.Registers(ctx, uint8(id), modbus.Holding, 0, 1)
		if code := modbus.Exception(err); code != 0 {
			unit.Answer = fmt.Sprintf("exception %d", code)
		} else if err != nil {
			continue
		}
		// Many devices have no such function; some do not even refuse it.
		if unit.Identity, err = client.Identify(ctx, uint8(id)); err != nil {
			unit.Identity = modbus.Identity{}
		}
		found = append(found, unit)
	}
	if asJSON {
		if err := printJSON(out, found); err != nil {
			return err
		}
	} else if len(found) > 0 {
		t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(t, "UNIT\tHOLDING 0\tVENDOR\tPRODUCT\tREVISION\tMODEL")
		for _, u := range found {
			i := u.Identity
			fmt.Fprintf(t, "%d\t%s\t%s\t%s\t%s\t%s\n", u.Unit, u.Answer, dash(i.Vendor), dash(i.Product), dash(i.Revision), dash(i.Model))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	switch {
	case ctx.Err() != nil:
		return errors.New("interrupted; the units after the last are not known")
	case len(found) == 0:
		fmt.Fprintln(stderr, "no unit answers; check baud rate, parity and wiring of a line, or give them longer: --timeout 1s")
		return errNo
	}
	return nil
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// unitRange reads 1-247 or 1,5,7-9.
func unitRange(text string) (ids []int, err error) {
	for _, part := range strings.Split(text, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.Atoi(from)
		b, errB := strconv.Atoi(to)
		if errA != nil || errB != nil || a < 1 || b > 255 || a > b {
			return nil, fmt.Errorf("--units: %q is no range of units; write one such as 1-247, or 1,5,7-9", part)
		}
		for id := a; id <= b; id++ {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
