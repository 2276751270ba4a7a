package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/fieldferry/fieldferry/buffer"
)

// job is work for a process of its own: what it writes, how much memory it
// takes, and how it comes back after a kill is seen from outside.
type job struct {
	What     string // fill, drain or wear
	Dir      string
	Kind     kind
	Messages int
	Group    int // of a fill: messages in a commit; 0 is as fast as it goes
	After    int // of a drain: messages that are appended afterwards, 47 in a commit
	Rate     int // of wear: readings a second
	For      time.Duration
	Linger   time.Duration // of wear
	Wait     bool          // stay, to be killed
}

// outcome is what came of a job.
type outcome struct {
	Written     uint64 // bytes handed to write(2)
	Open        time.Duration
	PerSecond   float64
	Generations int // left when it is drained
	AfterBytes  uint64
	Messages    int
	Heap        uint64 // highest, bytes of objects
	Anon        uint64 // highest RssAnon, bytes
	Resident    uint64 // highest VmRSS with the pages of mapped files, bytes
}

func workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "worker",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var j job
			if err := json.NewDecoder(os.Stdin).Decode(&j); err != nil {
				return err
			}
			out, err := j.do(cmd.Context())
			if err != nil {
				return err
			}
			if err := json.NewEncoder(cmd.OutOrStdout()).Encode(out); err != nil {
				return err
			}
			if j.Wait {
				_, err = io.Copy(io.Discard, os.Stdin)
			}
			return err
		},
	}
}

// worker is a process that has done its job and waits.
type worker struct{ cmd *exec.Cmd }

// limits are those of a worker.
type limits struct {
	group *memoryGroup // nil is none
	env   []string
}

// run has a process of its own do a job. A worker that waits must be killed.
func (j job) run(ctx context.Context, l limits) (out outcome, w *worker, err error) {
	self, err := os.Executable()
	if err != nil {
		return out, nil, err
	}
	cmd := exec.CommandContext(ctx, self, "buffer", "worker")
	cmd.Env = append(os.Environ(), l.env...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return out, nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return out, nil, err
	}
	if err := cmd.Start(); err != nil {
		return out, nil, err
	}
	// It has nothing to do before it knows its job.
	if l.group != nil {
		err = l.group.add(cmd.Process.Pid)
	}
	if err == nil {
		err = json.NewEncoder(stdin).Encode(j)
	}
	if err == nil {
		err = json.NewDecoder(bufio.NewReader(stdout)).Decode(&out)
	}
	if err != nil {
		return out, nil, errors.Join(err, cmd.Wait())
	}
	if j.Wait {
		return out, &worker{cmd}, nil
	}
	return out, nil, errors.Join(stdin.Close(), cmd.Wait())
}

// kill ends the process with SIGKILL.
func (w *worker) kill() error {
	if err := w.cmd.Process.Kill(); err != nil {
		return err
	}
	w.cmd.Wait() // says that it was killed
	return nil
}

func (j job) options() buffer.Options {
	return buffer.Options{PageSize: j.Kind.PageSize, Compress: j.Kind.Compress, Linger: time.Second}
}

func (j job) do(ctx context.Context) (out outcome, err error) {
	var peak peak
	stop := peak.watch()
	defer stop()
	began := time.Now()
	o := j.options()
	if j.What == "wear" {
		o.Linger = j.Linger
	}
	s, err := openBuffer(j.Dir, o)
	if err != nil {
		return out, err
	}
	out.Open = time.Since(began)
	var p *polled
	if j.What == "wear" {
		if p, err = openPolled(s); err != nil {
			return out, err
		}
	}
	before, err := handedToWrite()
	if err != nil {
		return out, err
	}
	began = time.Now()
	switch j.What {
	case "fill":
		if j.Group > 0 {
			err = fill(s, j.Messages, j.Group)
		} else {
			err = fillFast(s, j.Messages)
		}
		out.PerSecond = float64(j.Messages) / time.Since(began).Seconds()
	case "drain":
		out.PerSecond, err = drain(s, j.Messages)
		if err == nil {
			out.Generations, out.AfterBytes, err = j.after(s)
		}
	case "wear":
		out.Messages, err = p.wear(ctx, j.Rate, j.For)
	}
	if err != nil {
		return out, err
	}
	after, err := handedToWrite()
	if err != nil {
		return out, err
	}
	out.Written = after - before
	stop()
	out.Heap, out.Anon, out.Resident = peak.heap, peak.anon, peak.resident
	if j.Wait {
		return out, nil // it is about to be killed
	}
	return out, s.close()
}

// after waits until what is drained is gone from the disk, and appends again.
func (j job) after(s *bufferStore) (generations int, bytes uint64, err error) {
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if generations = s.b.Stats().Generations; generations == 0 || time.Now().After(deadline) {
			break
		}
	}
	before, err := handedToWrite()
	if err != nil {
		return 0, 0, err
	}
	if err := fill(s, j.After, 47); err != nil {
		return 0, 0, err
	}
	after, err := handedToWrite()
	return generations, after - before, err
}

// handedToWrite is the bytes this process has handed to write(2) and its like
// (proc(5), /proc/pid/io, wchar).
func handedToWrite() (uint64, error) {
	return procField("/proc/self/io", "wchar:")
}

func procField(path, name string) (uint64, error) {
	p, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(p)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == name {
			return strconv.ParseUint(f[1], 10, 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", path, name)
}

// peak is the most memory a process has taken.
type peak struct{ heap, anon, resident uint64 }

// watch looks every few milliseconds until the function it returns is called.
func (p *peak) watch() (stop func()) {
	end := make(chan struct{})
	var watching sync.WaitGroup
	watching.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		for {
			metrics.Read(sample)
			p.heap = max(p.heap, sample[0].Value.Uint64())
			if kib, err := procField("/proc/self/status", "RssAnon:"); err == nil {
				p.anon = max(p.anon, kib<<10)
			}
			if kib, err := procField("/proc/self/status", "VmRSS:"); err == nil {
				p.resident = max(p.resident, kib<<10)
			}
			select {
			case <-end:
				return
			case <-tick.C:
			}
		}
	})
	return sync.OnceFunc(func() {
		close(end)
		watching.Wait()
	})
}
