package doctor

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"

	"github.com/hsm-kms/hsm-kms/internal/ownedfile"
)

// processBehind is the process that listens at the other end of conn, or nil when the system does not tell (SO_PEERCRED
// gives the one that called listen: with socket activation that is systemd, which says nothing about the plugin).
func processBehind(conn net.Conn) *process {
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := unixConn.SyscallConn()
	if err != nil {
		return nil
	}
	var cred *unix.Ucred
	var asked error
	err = raw.Control(func(fd uintptr) { cred, asked = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || asked != nil || cred.Pid <= 1 {
		return nil
	}
	return processOf(int(cred.Pid))
}

func processOf(pid int) *process {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return nil
	}
	p := &process{pid: pid}
	program, err := proc.Executable()
	if errors.Is(err, fs.ErrPermission) {
		// The plugin closes itself to all but root (PR_SET_DUMPABLE), its own user included. The rest is there for all.
		program, err = proc.Comm()
	}
	if err != nil {
		return nil
	}
	p.program, p.replaced = strings.CutSuffix(program, " (deleted)")
	if args, err := proc.CmdLine(); err == nil {
		folder, _ := proc.Cwd() // "" for a process of another user
		p.config = configOf(args, folder)
	}
	if stat, err := proc.Stat(); err == nil {
		if seconds, err := stat.StartTime(); err == nil {
			p.started = time.UnixMilli(int64(seconds * 1000))
		}
	}
	if groups, err := proc.Cgroups(); err == nil && len(groups) > 0 {
		p.unit = filepath.Base(groups[len(groups)-1].Path)
		if p.unit == "/" {
			p.unit = ""
		}
	}
	if !p.replaced && filepath.IsAbs(p.program) {
		if openings, _, err := ownedfile.Others(p.program); err == nil && len(openings) > 0 {
			p.unsafe = openings[0]
		}
	}
	return p
}

// configOf finds --config in a command line that was run in folder; "" when it is not there, or relative to a folder that
// is not known ("").
func configOf(args []string, folder string) string {
	for i, arg := range args {
		value, inline := strings.CutPrefix(arg, "--config=")
		if !inline && arg == "--config" && i+1 < len(args) {
			value, inline = args[i+1], true
		}
		switch {
		case !inline:
		case filepath.IsAbs(value):
			return value
		case folder != "":
			return filepath.Join(folder, value)
		}
	}
	return ""
}

// changedSince reports whether the file at path was changed after the process began. The second that the start of a
// process is rounded by does not count.
func (p *process) changedSince(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !p.started.IsZero() && info.ModTime().After(p.started.Add(time.Second))
}
