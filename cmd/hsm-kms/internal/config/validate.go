package config

import (
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds that are the protocol's or the kernel's, not a matter of taste.
const (
	maxSunPath = 107             // bytes of a Unix socket's path on Linux, without the closing NUL
	maxKeyID   = 256             // bytes of a key_id, as the envelope limits it
	apiTimeout = 3 * time.Second // after which kube-apiserver gives a call up unless told otherwise
)

// Bounds that keep a slip of the pen from going far.
const (
	maxTokens     = 16
	maxReadRings  = 8
	maxRefuseKeys = 256
	maxSessions   = 1024
	maxAuditMB    = 10000
)

var (
	ringPattern     = regexp.MustCompile(`^[a-z0-9.-]{1,63}$`)
	namePattern     = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)
	variablePattern = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}$`)
	groupPattern    = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}\$?$`)
)

// validate reports every value that the types allow and the meaning does not.
func (c *Config) validate(p *problems) {
	p.oneOf("apiVersion", c.APIVersion, APIVersion)
	p.oneOf("kind", c.Kind, Kind)
	c.Socket.validate(p)
	validateRefuseKeys(p, c.RefuseKeys)
	c.validateRings(p)
	p.absolute("stateDir", c.StateDir, "as /var/lib/hsm-kms")
	p.between("refreshInterval", c.RefreshInterval, time.Second, time.Hour)
	p.between("probeInterval", c.ProbeInterval, time.Second, 10*time.Minute)
	p.between("deferGrace", c.DeferGrace, 0, 720*time.Hour)
	p.between("writeContinuation", c.WriteContinuation, 0, 24*time.Hour)
	p.between("outageHold", c.OutageHold, 0, 72*time.Hour)
	if c.HTTP.Address != "" {
		if err := CheckAddress(c.HTTP.Address); err != nil {
			p.report("http.address", fmt.Sprintf("%q is not host:port: %v", c.HTTP.Address, err),
				`write it as 127.0.0.1:9808 or [::1]:9808, or "" for none`)
		}
	}
	c.Audit.validate(p)
	p.oneOf("logging.level", c.Logging.Level, "debug", "info", "warn", "error")
	p.oneOf("logging.format", c.Logging.Format, "json", "text")
}

func (s *Socket) validate(p *problems) {
	p.absolute("socket.path", s.Path, "as /run/hsm-kms/kms.sock")
	if len(s.Path) > maxSunPath {
		p.report("socket.path", fmt.Sprintf("is %d bytes long, the kernel takes %d", len(s.Path), maxSunPath), "use a shorter path, such as /run/hsm-kms/kms.sock")
	}
	if strings.HasSuffix(s.Path, "/") {
		p.report("socket.path", fmt.Sprintf("%q is a folder", s.Path), "add the socket's name")
	}
	switch {
	case s.Mode&0o007 != 0:
		p.report("socket.mode", fmt.Sprintf("%s lets every user of this machine connect", s.Mode), `use "0600", or "0660" with socket.group`)
	case s.Mode != 0o600 && s.Mode != 0o660:
		p.report("socket.mode", fmt.Sprintf("%s is neither 0600 nor 0660", s.Mode), `use "0600", or "0660" with socket.group`)
	}
	switch {
	case p.has("socket.group") && !isNumber(s.Group) && !groupPattern.MatchString(s.Group):
		p.badValue("socket.group", s.Group, "a group's name or number", "getent group lists them; leave the line out for our own group")
	case s.Group != "" && s.Mode != 0o660:
		p.report("socket.group", fmt.Sprintf("has no effect with mode %s", s.Mode), `set socket.mode: "0660", or remove the group`)
	}
	if s.AllowedUIDs != nil && len(s.AllowedUIDs) == 0 {
		p.report("socket.allowedUIDs", "lets nobody connect", "list the uid of kube-apiserver, or remove the line to let root and our own uid in")
	}
}

// isNumber reports whether text can be a user or group id.
func isNumber(text string) bool {
	_, err := strconv.ParseUint(text, 10, 32)
	return err == nil
}

func validateRefuseKeys(p *problems, keys []string) {
	if len(keys) > maxRefuseKeys {
		p.report("refuseKeys", fmt.Sprintf("has %d entries, at most %d are accepted", len(keys), maxRefuseKeys), "list those that are about to retire")
		return
	}
	for i, key := range keys {
		field := fmt.Sprintf("refuseKeys[%d]", i)
		switch {
		case key == "" || len(key) > maxKeyID:
			p.report(field, fmt.Sprintf("is %d bytes long, a key_id has 1 to %d", len(key), maxKeyID), "copy it from `hsm-kms keys list`")
		case slices.Contains(keys[:i], key):
			p.report(field, fmt.Sprintf("%q is there twice", key), "remove one of the two")
		}
	}
}

func (a *Audit) validate(p *problems) {
	switch {
	case a.Path != "":
		p.absolute("audit.path", a.Path, `as /var/log/hsm-kms/audit.log, or "" for none`)
	case a.Required:
		p.report("audit.required", "is true, and audit.path is empty", "set audit.path, or required: false")
	}
	p.number("audit.maxSizeMB", a.MaxSizeMB, 1, maxAuditMB)
}

// CheckAddress reports whether address is host:port with a port in digits; the host may be empty or a name.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return fmt.Errorf("port %q is not a number from 0 to 65535", port)
	}
	if strings.ContainsAny(host, " /@") {
		return fmt.Errorf("host %q is not one", host)
	}
	return nil
}

// badValue reports a value that breaks the rule, or that is missing.
func (p *problems) badValue(field, value, rule, advice string) {
	switch {
	case value != "":
		p.report(field, fmt.Sprintf("%q is not %s", value, rule), advice)
	case p.has(field):
		p.report(field, "is empty, want "+rule, advice)
	default:
		p.report(field, "is missing", advice)
	}
}

func (p *problems) oneOf(field, value string, allowed ...string) {
	if !slices.Contains(allowed, value) {
		p.badValue(field, value, strings.Join(allowed, " or "), "write "+field[strings.LastIndex(field, ".")+1:]+": "+allowed[0])
	}
}

func (p *problems) absolute(field, path, advice string) {
	if !filepath.IsAbs(path) {
		p.badValue(field, path, "an absolute path", "write the whole path, "+advice)
	}
}

func (p *problems) between(field string, d Duration, least, most time.Duration) {
	if d.Std() < least || d.Std() > most {
		p.report(field, fmt.Sprintf("is %s, outside %s to %s", d, Duration(least), Duration(most)), "choose a time between them")
	}
}

func (p *problems) number(field string, n, least, most int) {
	if n < least || n > most {
		p.report(field, fmt.Sprintf("is %d, outside %d to %d", n, least, most), "choose a number between them")
	}
}
