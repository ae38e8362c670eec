//go:build !linux

package proc

import "syscall"

// attributes puts the child into a group of its own. No parent-death signal here: a SIGKILL of ours leaves it behind.
func attributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true}
}
