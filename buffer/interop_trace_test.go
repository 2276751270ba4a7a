//go:build interop

package buffer

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
)

// traced is the system calls that change files. strace records all of them, so
// that one the model of a disk does not know is noticed.
const traced = "openat,open,creat,close,write,pwrite64,writev,pwritev,pwritev2,truncate,ftruncate,fallocate,fsync,fdatasync," +
	"sync_file_range,copy_file_range,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,dup,dup2,dup3"

// call is one system call of a recorded process.
type call struct {
	name     string
	args     []string // a string without its quotes
	ret      int64
	returned bool // the process saw it return
	injected bool // it was made to fail
}

func (c *call) int(i int) int64 {
	n, err := strconv.ParseInt(c.args[i], 0, 64)
	if err != nil {
		panic(fmt.Sprintf("argument %d of %s is no number: %.80s", i, c.name, c.args[i]))
	}
	return n
}

// step is where a call is entered or where it returns; a call is in one step or
// in two.
type step struct {
	*call
	enters, returns bool
}

// readTrace reads what strace -f -xx has written.
func readTrace(t *testing.T, path string) (steps []step) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	open := make(map[string]*call) // by thread
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		thread, rest, _ := strings.Cut(lines.Text(), " ")
		rest = strings.TrimLeft(rest, " ")
		switch {
		case strings.HasPrefix(rest, "---"), strings.HasPrefix(rest, "+++"):
			continue
		case strings.HasPrefix(rest, "<... "):
			c := open[thread]
			if c == nil {
				t.Fatalf("%s: a call resumes that was not begun: %.200s", path, rest)
			}
			delete(open, thread)
			if c.result(rest) {
				steps = append(steps, step{c, false, true})
			}
			continue
		}
		name, args, ok := strings.Cut(rest, "(")
		if !ok {
			t.Fatalf("%s: %.200s", path, rest)
		}
		c := &call{name: name}
		args = strings.Replace(args, "<detached ...>", "<unfinished ...>", 1) // killed in it
		if args, ok := strings.CutSuffix(args, " <unfinished ...>"); ok {
			c.args = arguments(t, args)
			open[thread] = c
			steps = append(steps, step{c, true, false})
			continue
		}
		args, _, _ = strings.Cut(args, ")")
		c.args = arguments(t, args)
		steps = append(steps, step{c, true, c.result(rest)})
	}
	if err := lines.Err(); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return steps
}

// arguments takes the arguments of a call apart. In strings every byte stands as
// \xNN, so that no comma is in them.
func arguments(t *testing.T, s string) []string {
	t.Helper()
	args := strings.Split(s, ", ")
	for i, a := range args {
		if !strings.HasPrefix(a, `"`) {
			continue
		}
		if !strings.HasSuffix(a, `"`) || len(a)%4 != 2 {
			t.Fatalf("a string is cut: %.80s", a)
		}
		p := make([]byte, 0, len(a)/4)
		for at := 1; at < len(a)-1; at += 4 {
			n, err := strconv.ParseUint(a[at+2:at+4], 16, 8)
			if err != nil {
				t.Fatalf("not \\xNN: %.80s", a[at:])
			}
			p = append(p, byte(n))
		}
		args[i] = string(p)
	}
	return args
}

// result takes the value a call returned with from a line, if it did return.
func (c *call) result(line string) bool {
	_, ret, ok := strings.Cut(line, ") ")
	if !ok {
		return false
	}
	ret = strings.TrimLeft(ret, " =")
	ret, _, _ = strings.Cut(ret, " ")
	n, err := strconv.ParseInt(ret, 0, 64)
	if err != nil {
		return false // "?": it was killed
	}
	c.ret, c.returned = n, true
	c.injected = strings.HasSuffix(line, "(INJECTED)")
	return true
}
