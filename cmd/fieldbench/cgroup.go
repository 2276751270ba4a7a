package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// memoryGroup is a control group whose processes share a limit on their memory,
// the page cache of the files they read and write included (cgroups(7)).
type memoryGroup struct {
	dir  string
	what string
}

// limitMemory makes a memory group below that of this process, or, in version 2,
// where only groups without processes have some below, at the top. It needs root.
func limitMemory(bytes int64) (*memoryGroup, error) {
	const mount = "/sys/fs/cgroup"
	name := fmt.Sprintf("fieldbench-%d", os.Getpid())
	limit := strconv.FormatInt(bytes, 10)
	v2 := &memoryGroup{filepath.Join(mount, name), "cgroup v2"}
	err := v2.make(map[string]string{"memory.max": limit, "memory.swap.max": "0"})
	if err == nil {
		return v2, nil
	}
	v1 := &memoryGroup{filepath.Join(mount, "memory", ownGroup("memory"), name), "cgroup v1"}
	if err1 := v1.make(map[string]string{"memory.limit_in_bytes": limit}); err1 != nil {
		return nil, fmt.Errorf("no group to limit memory: %w", errors.Join(err, err1))
	}
	return v1, nil
}

func (g *memoryGroup) make(limits map[string]string) error {
	if err := os.Mkdir(g.dir, 0o755); err != nil {
		return err
	}
	for name, value := range limits {
		f, err := os.OpenFile(filepath.Join(g.dir, name), os.O_WRONLY, 0) // made by the kernel, or not
		if err == nil {
			_, err = f.WriteString(value)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return errors.Join(err, os.Remove(g.dir))
		}
	}
	return nil
}

// add moves a process into the group.
func (g *memoryGroup) add(pid int) error {
	return os.WriteFile(filepath.Join(g.dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
}

// remove takes the group away when its processes have ended.
func (g *memoryGroup) remove() error { return os.Remove(g.dir) }

// ownGroup is the path of this process in the hierarchy of a controller of version 1.
func ownGroup(controller string) string {
	p, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(p)) {
		// hierarchy:controllers:path
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) == 3 && f[1] == controller {
			return f[2]
		}
	}
	return ""
}
