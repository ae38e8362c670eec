package conformance

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"github.com/hsm-kms/hsm-kms/envelope"
)

// The results of a check.
const (
	Passed  = "passed"
	Failed  = "failed"
	Skipped = "skipped"
)

// Report is what was found. It holds nothing that is secret or that names an installation: no PIN, label, serial number or
// path. Fields and names are a contract.
type Report struct {
	Format       int     `json:"format"`
	Program      string  `json:"program"`
	Date         string  `json:"date"`
	Module       string  `json:"module"`
	ModuleSHA256 string  `json:"moduleSHA256"`
	Manufacturer string  `json:"manufacturer"`
	Model        string  `json:"model"`
	Firmware     string  `json:"firmware"`
	Profile      string  `json:"profile"`
	Settings     string  `json:"settings"`
	Checks       []Check `json:"checks"`
	Calls        []Calls `json:"calls"`
	// Left are the objects that the run made and that may still be on the token, each with its label and CKA_ID.
	Left     []string `json:"left"`
	Conforms bool     `json:"conforms"`
}

// Check is one requirement.
type Check struct {
	Name   string `json:"name"`
	Result string `json:"result"`
	TookMS int64  `json:"tookMS"`
	Detail string `json:"detail,omitempty"` // why it failed or was left out, or what was seen
}

// Calls is what one PKCS#11 function did.
type Calls struct {
	Function string   `json:"function"`
	Count    int      `json:"count"`
	P50US    int64    `json:"p50us"` // of those that succeeded
	MaxUS    int64    `json:"maxus"`
	Errors   []string `json:"errors,omitempty"` // codes other than CKR_OK, each once
}

// conforms reports whether nothing failed and nothing was left behind.
func (r *Report) conforms() bool {
	failed := slices.ContainsFunc(r.Checks, func(c Check) bool { return c.Result == Failed })
	return !failed && len(r.Left) == 0 && len(r.Checks) > 0
}

// Text writes the report for people.
func (r *Report) Text(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(cells ...string) { fmt.Fprintln(t, strings.TrimRight(strings.Join(cells, "\t"), "\t")) }
	line(fmt.Sprintf("hsm-kms conformance report, format %d", r.Format))
	line()
	for _, row := range [][2]string{
		{"program", r.Program}, {"date", r.Date}, {"module", r.Module}, {"SHA-256", r.ModuleSHA256}, {"manufacturer", r.Manufacturer},
		{"model", r.Model}, {"firmware", r.Firmware}, {"profile", r.Profile}, {"settings", r.Settings},
	} {
		line(row[0], row[1])
	}
	line()
	for _, c := range r.Checks {
		line(c.Result, c.Name, fmt.Sprintf("%d ms", c.TookMS), c.Detail)
	}
	line()
	for _, c := range r.Calls {
		line(c.Function, fmt.Sprint(c.Count), fmt.Sprintf("p50 %d us", c.P50US), fmt.Sprintf("max %d us", c.MaxUS), strings.Join(c.Errors, " "))
	}
	line()
	switch {
	case len(r.Left) > 0:
		line("left on the token: " + strings.Join(r.Left, ", "))
	default:
		line("left on the token: nothing")
	}
	verdict := "this token DOES NOT CONFORM to the profile " + r.Profile
	if r.Conforms {
		verdict = "this token conforms to the profile " + r.Profile
	}
	line(verdict)
	return t.Flush()
}

// counter observes PKCS#11 calls. Safe for concurrent use.
type counter struct {
	mu    sync.Mutex // guards the fields below
	calls map[string]*seen
	open  int
	most  int
}

type seen struct {
	count  int
	took   []time.Duration // of those that succeeded
	errors map[string]bool
}

var _ envelope.Observer = (*counter)(nil)

// HSMCall implements envelope.Observer.
func (c *counter) HSMCall(_, function, result string, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.calls[function]
	if s == nil {
		s = &seen{errors: map[string]bool{}}
		c.calls[function] = s
	}
	s.count++
	if result != "CKR_OK" {
		s.errors[result] = true
		return
	}
	s.took = append(s.took, took)
	switch function {
	case "C_OpenSession":
		c.open++
		c.most = max(c.most, c.open)
	case "C_CloseSession":
		c.open--
	case "C_Finalize":
		c.open = 0
	}
}

// of is how often function was called.
func (c *counter) of(function string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s := c.calls[function]; s != nil {
		return s.count
	}
	return 0
}

// connecting forgets the sessions of processes of the module that have ended.
func (c *counter) connecting() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open, c.most = 0, 0
}

// mostSessions is how many were open at one time.
func (c *counter) mostSessions() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.most
}

// rows are the functions by name.
func (c *counter) rows() []Calls {
	c.mu.Lock()
	defer c.mu.Unlock()
	rows := []Calls{}
	for function, s := range c.calls {
		slices.Sort(s.took)
		row := Calls{Function: function, Count: s.count}
		if n := len(s.took); n > 0 {
			row.P50US, row.MaxUS = s.took[n/2].Microseconds(), s.took[n-1].Microseconds()
		}
		for code := range s.errors {
			row.Errors = append(row.Errors, code)
		}
		slices.Sort(row.Errors)
		rows = append(rows, row)
	}
	slices.SortFunc(rows, func(a, b Calls) int { return strings.Compare(a.Function, b.Function) })
	return rows
}
