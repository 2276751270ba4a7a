package conformance

import (
	"os/exec"
	"syscall"
)

// dieWithParent ends the broker also if the tests end by a panic or a timeout.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
