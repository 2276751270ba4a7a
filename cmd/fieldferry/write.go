package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/adapters"
)

func writeCommand() *cobra.Command {
	var asJSON bool
	var server opcuaTarget
	cmd := &cobra.Command{
		Use:   "write {FILE DEVICE POINT=VALUE… | opc.tcp://HOST NODE VALUE}",
		Short: "Write points of a device of a site file, or a node of an OPC UA server",
		Long: `write gives points of a device new values, in order, and prints what it reads back.
Only points with write: in the site file can be written, within their limits, in
the unit of the point; of serial devices those with send:, whose value is true
unless {value} stands in what is sent. VALUE is a number, true, false, a text, or a list as
'[1, 2, 3]'; single bits of a point with bits: are written as POINT.BIT=true, and
the others stay as they are. A method of an OPC UA server is called by writing its
arguments to its point: true for none, a list for several; what it returns is printed.

  fieldferry write site.yaml em-0001 setpoint=24.5 mode=auto
  fieldferry write site.yaml press-0001 reset=true
  fieldferry write opc.tcp://10.4.1.9:4840 "ns=2;s=Pump.Setpoint" 24.5`,
		Args: args(cobra.MinimumNArgs(3)),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	server.ownFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx, stop := untilSignal(cmd.Context())
		defer stop()
		if isOPCUA(args[0]) {
			return writeNode(ctx, cmd.OutOrStdout(), &server, args, asJSON)
		}
		values, err := assignments(args[2:])
		if err != nil {
			return usageError{err}
		}
		c, err := loadSite(args[0], cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		var samples []adapters.Sample
		if sc := serialDevice(c, args[1]); len(sc.Devices) > 0 {
			samples, err = writeSerial(ctx, sc, args[1], values)
		} else {
			client, _, derr := dialDevice(ctx, c, args[1])
			if derr != nil {
				return derr
			}
			defer client.Close()
			samples, err = client.Write(ctx, args[1], values)
		}
		if len(samples) > 0 || asJSON {
			err = errors.Join(err, printSamples(cmd.OutOrStdout(), samples, asJSON))
		}
		return err
	}
	return cmd
}

// assignments reads POINT=VALUE and POINT.BIT=VALUE.
func assignments(words []string) (all []adapters.Assignment, err error) {
	at := map[string]int{} // points with bits
	for _, word := range words {
		name, text, ok := strings.Cut(word, "=")
		if !ok || name == "" {
			return nil, fmt.Errorf("%q is no assignment; write POINT=VALUE", word)
		}
		v, err := parseValue(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		point, bit, ok := strings.Cut(name, ".")
		if !ok {
			all = append(all, adapters.Assignment{Point: name, Value: v})
			continue
		}
		on, isNumber := v.Float64()
		if !isNumber || on != 0 && on != 1 {
			return nil, fmt.Errorf("%s: a bit is true or false", name)
		}
		i, there := at[point]
		if !there {
			i = len(all)
			at[point] = i
			all = append(all, adapters.Assignment{Point: point, Value: adapters.Flags(&adapters.FlagNames{}, 0)})
		}
		names, set := all[i].Value.Flags()
		set |= uint64(on) << len(names)
		with := adapters.FlagNames(append(names, bit))
		all[i].Value = adapters.Flags(&with, set)
	}
	return all, nil
}

// parseValue reads a value as a person writes it: what is no number, boolean or
// list is a text.
func parseValue(text string) (adapters.Value, error) {
	d := json.NewDecoder(bytes.NewReader([]byte(text)))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		if strings.HasPrefix(text, "[") {
			return adapters.Value{}, fmt.Errorf("%q is no list; write [1, 2, 3]", text)
		}
		return adapters.String(text), nil
	}
	if _, err := d.Token(); err != io.EOF {
		return adapters.String(text), nil // 10:30, say
	}
	return valueOf(v, text)
}

func valueOf(v any, text string) (adapters.Value, error) {
	switch v := v.(type) {
	case bool:
		return adapters.Bool(v), nil
	case string:
		return adapters.String(v), nil
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return adapters.Int64(i), nil
		}
		var u uint64
		if json.Unmarshal([]byte(v), &u) == nil {
			return adapters.Uint64(u), nil
		}
		f, err := v.Float64()
		return adapters.Float64(f), err
	case []any:
		var list []adapters.Value
		for _, e := range v {
			one, err := valueOf(e, text)
			if err != nil {
				return adapters.Value{}, err
			}
			list = append(list, one)
		}
		return adapters.List(list), nil
	}
	return adapters.Value{}, fmt.Errorf("%q is no value; it is a number, true, false, a text or a list", text)
}
