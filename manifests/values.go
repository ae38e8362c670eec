package manifests

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// Values are what manifests are filled in with. Paths are absolute, but for a PINFile that names a systemd credential.
type Values struct {
	ConfigPath  string // the plugin's configuration
	SocketPath  string
	SocketMode  string // as 0600
	SocketGroup string // "": none; the pod needs its number
	StateDir    string
	AuditPath   string // "": no trail
	HTTPAddress string // host:port; "": off
	// AllowPodVolumes: the configuration takes volumes of a pod for the socket's folder and StateDir.
	AllowPodVolumes bool
	Tokens          []Token
	Version         string // of the program
	Cluster         string // label of what is scraped
	Hostname        string // of this machine

	Image            string   // of the pod
	Container        string   // that runs a hosted kube-apiserver
	Program          string   // path of hsm-kms on the host
	EncryptionConfig string   // path of kube-apiserver's EncryptionConfiguration
	Provider         string   // name of the plugin in it, which becomes part of what etcd holds
	Resources        []string // to be encrypted
	Plaintext        bool     // the cluster holds plain text
	From             string   // the provider that it is to come from: aescbc, aesgcm, secretbox, or the name of a KMS plugin
	FromEndpoint     string   // endpoint of that KMS plugin
	Targets          []string // host:port of each plugin that Prometheus scrapes; empty: the one of this machine
	Step             int      // 1: every API server learns to read; 2: writes; 0: not given
}

// Token is what manifests need to know of a token.
type Token struct {
	Name, Module  string
	PINFile       string // "": the token needs no login, or asks for the PIN itself
	Label         string // "": it is chosen by serial or slot
	AllowGroupPIN bool   // the configuration takes a PIN file that a group reads
	// Links are the paths that Module leads to where it is a link: each link on the way, and the file at the end.
	Links          []string
	MaxSessions    int
	ConnectTimeout time.Duration
}

// Each token's library runs in a worker process, and for a moment in two: the old one goes on until its successor serves.
const workersPerToken = 2

// StopSeconds is how long an end may take: requests are drained, and then a login or the destruction of a key that hangs
// is waited for, because a token may be lost with a process that is killed there.
func (v *Values) StopSeconds() int {
	var longest time.Duration
	for _, t := range v.Tokens {
		longest = max(longest, t.ConnectTimeout)
	}
	return 20 + int((longest+time.Second-1)/time.Second)
}

// Tasks is a limit of threads: those of the plugin, and of each worker one for each session and some of its own.
func (v *Values) Tasks() int {
	tasks := 128
	for _, t := range v.Tokens {
		tasks += workersPerToken * (t.MaxSessions + 48)
	}
	return tasks
}

// MemoryMiB is a limit of memory above that of the plugin itself, base: each worker has a Go runtime and the library.
func (v *Values) MemoryMiB(base int) int { return base + workersPerToken*64*len(v.Tokens) }

// localProviders keep their keys in the EncryptionConfiguration.
func localProviders() []string { return []string{"aescbc", "aesgcm", "secretbox"} }

// FromLocal reports whether From keeps its keys in the EncryptionConfiguration.
func (v *Values) FromLocal() bool { return slices.Contains(localProviders(), v.From) }

// ReadOnly reports whether the plugin stands after what encrypts today.
func (v *Values) ReadOnly() bool { return (v.Plaintext || v.From != "") && v.Step != 2 }

// Credential is the name under which the PIN comes from systemd; "": it is a file.
func (t Token) Credential() string {
	if filepath.IsAbs(t.PINFile) {
		return ""
	}
	return t.PINFile
}

// withPIN are the tokens that have a PIN file.
func (v *Values) withPIN() []Token {
	return slices.DeleteFunc(slices.Clone(v.Tokens), func(t Token) bool { return t.PINFile == "" })
}

// File is where the PIN lies on the host: a credential is taken from /etc/hsm-kms.
func (t Token) File() string {
	if t.Credential() == "" {
		return t.PINFile
	}
	return "/etc/hsm-kms/" + t.Credential()
}

// SocketDir is the folder of the socket.
func (v *Values) SocketDir() string { return filepath.Dir(v.SocketPath) }

// ConfigDir is the folder of the configuration.
func (v *Values) ConfigDir() string { return filepath.Dir(v.ConfigPath) }

// EncryptionDir is the folder of the EncryptionConfiguration.
func (v *Values) EncryptionDir() string { return filepath.Dir(v.EncryptionConfig) }

// HTTPHost and HTTPPort are the parts of HTTPAddress that probes ask.
func (v *Values) HTTPHost() string {
	host, _, err := net.SplitHostPort(v.HTTPAddress)
	if err != nil || host == "" || host == "0.0.0.0" || host == "::" {
		return "127.0.0.1"
	}
	return host
}

// HTTPPort is the port of HTTPAddress; "" when there is none that is known before the start.
func (v *Values) HTTPPort() string {
	_, port, err := net.SplitHostPort(v.HTTPAddress)
	if err != nil || port == "0" {
		return ""
	}
	return port
}

// SoftHSM reports whether a token is one of SoftHSM, which keeps it in files of its own.
func (v *Values) SoftHSM() bool {
	return slices.ContainsFunc(v.Tokens, func(t Token) bool { return strings.HasPrefix(filepath.Base(t.Module), "libsofthsm2") })
}

// StateName and LogsName are for StateDirectory= and LogsDirectory=; "": the folder is elsewhere.
func (v *Values) StateName() string { return below("/var/lib/", v.StateDir) }

// LogsName is the part of the trail's folder below /var/log.
func (v *Values) LogsName() string {
	if v.AuditPath == "" {
		return ""
	}
	return below("/var/log/", filepath.Dir(v.AuditPath))
}

func below(root, path string) string {
	name, ok := strings.CutPrefix(path, root)
	if !ok || strings.ContainsAny(name, " :%\\\"'") {
		return ""
	}
	return name
}

// WritePaths are the folders that the service writes to and systemd does not make.
func (v *Values) WritePaths() []string {
	var paths []string
	if v.StateName() == "" {
		paths = append(paths, v.StateDir)
	}
	if v.AuditPath != "" && v.LogsName() == "" {
		paths = append(paths, filepath.Dir(v.AuditPath))
	}
	if v.SoftHSM() {
		paths = append(paths, "/var/lib/softhsm/tokens")
	}
	return slices.Compact(paths)
}

func (v *Values) checkEncryption() error {
	switch {
	case v.Plaintext && v.From != "":
		return errors.New("--plaintext and --from exclude each other: what is plain text is read by identity in any case")
	case v.Step < 0 || v.Step > 2:
		return fmt.Errorf("--step %d: 1 and 2 are known", v.Step)
	case v.Step != 0 && !v.Plaintext && v.From == "":
		return hint.Wrap(fmt.Errorf("--step %d alone is the list of a new cluster, which reads nothing that was written before", v.Step),
			"add what the cluster holds today: --plaintext, or --from PROVIDER")
	case v.From == "identity":
		return hint.Wrap(errors.New("--from identity: identity does not encrypt"), "use --plaintext")
	case v.From != "" && !v.FromLocal() && !strings.HasPrefix(v.FromEndpoint, "unix:///"):
		return hint.Wrap(fmt.Errorf("--from %s: no endpoint unix:///... of the KMS plugin of that name is given", v.From),
			"add --from-endpoint unix:///..., as it stands in the present EncryptionConfiguration")
	case v.FromLocal() && v.FromEndpoint != "":
		return fmt.Errorf("--from-endpoint: %s is no KMS plugin", v.From)
	case v.From == "" && v.FromEndpoint != "":
		return errors.New("--from-endpoint needs --from with the name of that KMS plugin")
	case v.From == v.Provider:
		return hint.Wrap(fmt.Errorf("--from %s: that is the name of this plugin's own provider", v.From),
			"give the other provider's name, or this one another with --name")
	case len(v.Resources) == 0 || slices.Contains(v.Resources, ""):
		return errors.New("--resources: name at least one, such as secrets")
	case !providerName.MatchString(v.Provider):
		return fmt.Errorf("--name %q: a provider's name has letters, digits, dots, hyphens and underscores, 63 at most", v.Provider)
	}
	return nil
}

// providerName is narrower than kube-apiserver's rule, which forbids ":" alone: the name stands in etcd, and in what
// other programs print.
var providerName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func (v *Values) checkPod() error {
	for _, t := range v.Tokens {
		if t.Credential() != "" {
			return hint.Wrap(fmt.Errorf("token %s: pinFile %q is a systemd credential, which a pod does not get", t.Name, t.PINFile),
				"give pinFile an absolute path, such as /etc/hsm-kms/pin")
		}
	}
	if v.Image == "" {
		return hint.Wrap(errors.New("the image of the pod is not named"),
			"build one with the file that hsm-kms manifests dockerfile prints, and name it with --image")
	}
	if _, err := strconv.ParseUint(v.SocketGroup, 10, 32); v.SocketGroup != "" && err != nil {
		return hint.Wrap(fmt.Errorf("socket.group %q is a name, and the pod's image has no such group", v.SocketGroup),
			"give the number of the group: getent group "+v.SocketGroup)
	}
	return nil
}

// checkKind puts the configuration where the node's image has it, wherever it lies on the laptop.
func (v *Values) checkKind() error {
	v.ConfigPath = "/etc/hsm-kms/config.yaml"
	return errors.Join(v.checkUnit(), v.checkEncryption())
}

// checkPodMonitor refuses an address that only the node itself reaches.
func (v *Values) checkPodMonitor() error {
	host, _, err := net.SplitHostPort(v.HTTPAddress)
	switch ip := net.ParseIP(host); {
	case err != nil || v.HTTPPort() == "":
		return hint.Wrap(fmt.Errorf("http.address %q has no port to scrape", v.HTTPAddress), "set it in the configuration, such as 0.0.0.0:9808")
	case host == "localhost" || ip != nil && ip.IsLoopback():
		return hint.Wrap(fmt.Errorf("http.address %s can be reached on its own node only", v.HTTPAddress),
			"set it to an address that Prometheus reaches, such as 0.0.0.0:9808, and let the nodes' firewall admit nobody else: there is no authentication. "+
				"Where each node has an agent of Prometheus, use hsm-kms manifests scrape-config")
	}
	return nil
}

func (v *Values) checkScrape() error {
	for _, target := range v.Targets {
		if _, port, err := net.SplitHostPort(target); err != nil || port == "" {
			return hint.Wrap(fmt.Errorf("--target %q is no host and port", target), "give one such as cp-1.example.com:9808")
		}
	}
	if len(v.Targets) == 0 && v.HTTPPort() == "" {
		return hint.Wrap(fmt.Errorf("http.address %q has no port to scrape", v.HTTPAddress), "set it in the configuration, or give each plugin with --target")
	}
	return nil
}

func (v *Values) checkUnit() error {
	for _, t := range v.Tokens {
		if strings.ContainsAny(t.Credential(), " :%\"'\\") {
			return fmt.Errorf("token %s: pinFile %q is no name that a unit can hold", t.Name, t.PINFile)
		}
	}
	if strings.ContainsAny(v.SocketPath, " %\"'\\") {
		return fmt.Errorf("socket.path %q has characters that a socket unit cannot hold", v.SocketPath)
	}
	return nil
}
