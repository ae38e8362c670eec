// Package config reads the one configuration file of hsm-kms. The structs are the manual of every field and have
// the defaults. The file is read strictly, and judged by all rules that need nothing else. The package touches no token,
// PIN, module, socket or user database (Socket.GID apart), so that a file written on
// another machine can be checked; what the machine has to say is asked by doctor and serve.
//
// It depends on hint, ownedfile and duration. A Config is not changed after Load, and is then safe for concurrent use.
package config

import "time"

// DefaultPath is where the commands look when --config is not given.
const DefaultPath = "/etc/hsm-kms/config.yaml"

// Marks of a file of this format, so that a later, different one cannot be read as this one.
const (
	APIVersion = "hsm-kms/v1"
	Kind       = "PluginConfiguration"
)

// The ways in which a key of the ring wraps; FORMAT.md is their specification.
const (
	ProfileAESGCM      = "aes-gcm"
	ProfileHMACKDF     = "hmac-kdf"
	ProfileAESGCMHSMIV = "aes-gcm-hsm-iv"
)

// The ways of logging in to a token.
const (
	LoginPIN    = "pin"
	LoginNone   = "none"
	LoginPINPad = "pinpad"
)

// PlaceholderRing is the name of the ring in the samples. It is no name for a ring: clusters that keep it share their keys.
const PlaceholderRing = "change-me"

// Config is the whole file. Required are apiVersion, kind, keyRing and tokens; everything else has a default. An
// unknown field, a duplicate one and one without a value are errors.
type Config struct {
	// APIVersion is hsm-kms/v1. Required.
	APIVersion string `yaml:"apiVersion"`
	// Kind is PluginConfiguration. Required.
	Kind string `yaml:"kind"`
	// Socket is where kube-apiserver finds the plugin, and who may connect.
	Socket Socket `yaml:"socket"`
	// KeyRing is the CKA_LABEL that all versions of the master key carry; [a-z0-9.-]{1,63}. Required. One ring per
	// cluster: the name is part of every key_id, and renaming it makes all that was written unreadable.
	KeyRing string `yaml:"keyRing"`
	// Profile is how the keys of the ring are used: aes-gcm, the default; hmac-kdf for tokens without AES-GCM
	// (TPM 2.0, YubiHSM 2) and for HSMs in FIPS mode; or aes-gcm-hsm-iv for HSMs that insist on making the nonce and have
	// no HMAC. It belongs to the ring: all nodes have the same, and it does not change later, but between aes-gcm and
	// aes-gcm-hsm-iv.
	Profile string `yaml:"profile"`
	// RefuseKeys are key_ids that Decrypt answers as if they were gone: a rehearsal before `keys retire`. Default
	// none, at most 256. What is still encrypted under them cannot be read until they are taken out again.
	RefuseKeys []string `yaml:"refuseKeys"`
	// Tokens are the tokens that hold the ring, in order of preference; all hold the same keys. Required, at most 16.
	// The first one serves, the next ones take over when it fails; `keys` commands work on the first.
	Tokens []Token `yaml:"tokens"`
	// ReadRings are rings that are served for Decrypt only, each with tokens of its own. Default none, at most 8.
	ReadRings []ReadRing `yaml:"readRings"`
	// BackupRehearsed says that a backup of the only token was restored once, as a rehearsal: doctor warns of a single
	// token until then. Default false.
	BackupRehearsed bool `yaml:"backupRehearsed"`
	// AllowImportedKeys serves keys that were made outside their token as well (CKA_LOCAL, CKA_ALWAYS_SENSITIVE or
	// CKA_NEVER_EXTRACTABLE is not true). Default false. With true, nobody can prove that no copy is elsewhere.
	AllowImportedKeys bool `yaml:"allowImportedKeys"`
	// AllowUnsafeModulePath loads a module although somebody but root and our own user could change its file or a
	// folder on its path. Default false. With true, that user runs code in the plugin and has the PIN.
	AllowUnsafeModulePath bool `yaml:"allowUnsafeModulePath"`
	// AllowPodVolumes lets the folders of socket.path and audit.path, and stateDir, be volumes of the plugin's pod (emptyDir), which kubelet
	// leaves open to every user. Default false. It counts only for a folder that is a mount point of its own. With true,
	// each container that mounts the volume can replace the socket: mount it in kube-apiserver's, read-only, and no other.
	AllowPodVolumes bool `yaml:"allowPodVolumes"`
	// HangExitAfter has no effect any more, and a later version will refuse it: a module in which calls hang is replaced
	// while the process goes on.
	HangExitAfter Duration `yaml:"hangExitAfter,omitempty"`
	// StateDir is the folder for the records of PIN attempts and the last proven key_id, for our own user alone. Default /var/lib/hsm-kms.
	// It must outlive the process: without it a restart would try a refused PIN again, until the token locks.
	StateDir string `yaml:"stateDir"`
	// RefreshInterval is how often the ring is read again from the token. Default 30s; 1s to 1h. A rotation must be
	// announced at least two of them ahead.
	RefreshInterval Duration `yaml:"refreshInterval"`
	// ProbeInterval is how often the current key is exercised for Status. Default 30s; 1s to 10m. A result older than
	// three of them is unhealthy, and each costs one encryption of the 2^32 that a key has.
	ProbeInterval Duration `yaml:"probeInterval"`
	// DeferGrace is how long after its activation a key waits for tokens that are out of reach before it becomes current
	// without them. Default 24h; 0s to 720h, the same on all nodes. A token that can be reached and lacks the key is waited
	// for without limit. With 0s a key may become current that only one token holds.
	DeferGrace Duration `yaml:"deferGrace"`
	// HTTP is the listener for metrics and health.
	HTTP HTTP `yaml:"http"`
	// WriteContinuation is how long Status goes on naming the key_id, unhealthy, while the HSM cannot be reached, so
	// that API servers can write with the DEK seed that they have. Default 1h; 0s to 24h; with 0s Status fails, and
	// writes stop within three minutes, as soon as the HSM is out of reach.
	WriteContinuation Duration `yaml:"writeContinuation"`
	// OutageHold is how long the plugin may answer without the HSM within seven days, from what it has opened and sealed
	// before. Default 0s, off; up to 72h, the same on all nodes. Otherwise the DEKs of the cluster are in the plugin's memory all
	// the time, sealed under a key in one locked page: see docs/outage.md.
	OutageHold Duration `yaml:"outageHold"`
	// Audit is the trail of every Encrypt and Decrypt.
	Audit Audit `yaml:"audit"`
	// Logging is the process's own log, on standard error.
	Logging Logging `yaml:"logging"`
}

// Socket is the Unix socket of the KMS v2 service. Under systemd socket activation the unit decides path and mode.
type Socket struct {
	// Path is absolute and at most 107 bytes, the kernel's limit. Default /run/hsm-kms/kms.sock. Its folder must be
	// writable for its owner alone.
	Path string `yaml:"path"`
	// Mode is the socket file's mode: "0600", the default, or "0660" to let the group connect. Others never may.
	Mode FileMode `yaml:"mode"`
	// Group is the name or number of the group that the socket file gets, for a kube-apiserver that does not run as
	// root; processes that have it as primary or supplementary group may connect beside AllowedUIDs. Needs mode
	// "0660". Default: our own group on the file, and no group is let in. Where there is no /etc/group, as in a small
	// image, give the number.
	Group string `yaml:"group,omitempty"`
	// AllowedUIDs are the user ids that may connect, by SO_PEERCRED. Default root and our own uid; a list that is
	// given is exact, and replaces both. See UIDs.
	AllowedUIDs []uint32 `yaml:"allowedUIDs,omitempty"`
}

// Token is one PKCS#11 token and how to work with it. Exactly one of URI, Label, Serial and Slot says which token it is.
type Token struct {
	// Name is what logs, metrics and reports call this token: [a-z0-9-]{1,63}, unique. Required.
	Name string `yaml:"name"`
	// URI is a pkcs11: URI (RFC 7512) in the place of Module, Label, Serial and Slot, which are read from it. It has
	// module-path, and at least one of token, serial and slot-id; a token must fit all that it says.
	URI string `yaml:"uri,omitempty"`
	// Module is the absolute path of the vendor's PKCS#11 library. Required, here or in URI.
	Module string `yaml:"module,omitempty"`
	// Label is the token's CKA label, at most 32 bytes. The usual choice: it survives a change of slot numbers.
	Label string `yaml:"label,omitempty"`
	// Serial is the token's serial number, at most 16 bytes.
	Serial string `yaml:"serial,omitempty"`
	// Slot is the slot number. The last choice: many modules number slots differently after a restart.
	Slot *uint `yaml:"slot,omitempty"`
	// Login is how to log in to the token: pin, the default; none, for a token that needs no login; or pinpad, for one that
	// asks for the PIN itself (CKF_PROTECTED_AUTHENTICATION_PATH).
	Login string `yaml:"login"`
	// PINFile is the file with the user PIN: an absolute path, or the name of a systemd credential, which is looked up
	// in $CREDENTIALS_DIRECTORY. Required with login: pin, and refused otherwise. Owner root or our own user, mode 0400 or
	// 0600; at most 256 bytes, of which
	// one newline at the end is not part of the PIN. It is read again at each login.
	PINFile string `yaml:"pinFile,omitempty"`
	// EmptyPIN says that the token's PIN is the empty one, so that the file may be empty. Default false.
	EmptyPIN bool `yaml:"emptyPIN"`
	// AllowGroupPIN accepts mode 0440 too, where the file's group is one of this process's: a Secret volume in a pod with
	// fsGroup has that. Default false. With true, every process of that group can read the PIN.
	AllowGroupPIN bool `yaml:"allowGroupPIN"`
	// MaxSessions is the most working sessions at a time; one more is for login and refresh. Default 8; 1 to 1024.
	// They are opened when needed. More are of use where a call takes long, as over a network.
	MaxSessions int `yaml:"maxSessions"`
	// CallTimeout is how long one PKCS#11 call may take before it is given up with its session. Default 2s; more than
	// 0s and less than 3s, after which kube-apiserver by default has given up itself.
	CallTimeout Duration `yaml:"callTimeout"`
	// ConnectTimeout is how long loading the module, C_Initialize and the first reading of the ring may take together.
	// Default 30s; 1s to 10m, and at least callTimeout. It is also how long an end waits for a login under way.
	ConnectTimeout Duration `yaml:"connectTimeout"`
	// IVAppended says how the token tells the nonce that it makes (profile aes-gcm-hsm-iv): true, 16 bytes after the tag
	// (Luna in FIPS mode); false, the default, 12 bytes where the IV was handed over (AWS CloudHSM). keys create finds out
	// which of the two it is.
	IVAppended bool `yaml:"ivAppended,omitempty"`
	// InitArgs is the string that C_Initialize gets as pReserved, for modules that take parameters there, as NSS softokn.
	InitArgs string `yaml:"initArgs,omitempty"`
	// Env are variables of the environment that this token's module gets, over those of the plugin.
	Env map[string]string `yaml:"env,omitempty"`
	// PassEnv are names, or prefixes that end with *, of the plugin's own variables that the module gets besides those
	// that every module gets.
	PassEnv []string `yaml:"passEnv,omitempty"`
	// Swap is how the module's process is replaced while the token serves: overlap (another one is connected first) or
	// stop-first (it is ended first, and requests wait). Default: overlap, until the token refuses a second login or session.
	Swap string `yaml:"swap,omitempty"`
}

// HTTP is the listener for /metrics, /livez and /readyz. It has no authentication and gives no secret away.
type HTTP struct {
	// Address is host:port; "" is off. Default 127.0.0.1:9808. Port 0 takes a free one. Other hosts than loopback are
	// accepted with a warning.
	Address string `yaml:"address"`
}

// Audit is the tamper-evident trail of every Encrypt and Decrypt.
type Audit struct {
	// Path is absolute; "" is off, with a warning. Default /var/log/hsm-kms/audit.log. Commands that use or destroy a
	// master key write a file of their own beside it.
	Path string `yaml:"path"`
	// Required refuses an Encrypt or Decrypt whose record cannot be written. Default false: it is served, and the loss
	// is logged and counted. With true, a full disk stops the API server.
	Required bool `yaml:"required"`
	// MaxSizeMB is the size at which the file is rotated, in megabytes of 1,000,000 bytes. Default 100; 1 to 10000.
	MaxSizeMB int `yaml:"maxSizeMB"`
}

// Logging is the process's own log. It never holds plaintext, ciphertext or a PIN, at any level.
type Logging struct {
	// Level is the least that is logged: debug, info (the default), warn or error.
	Level string `yaml:"level"`
	// Format is json (the default) or text.
	Format string `yaml:"format"`
}

// Default returns the configuration of a file that sets no more than it must: all but keyRing and tokens. Each call
// gives a value of its own.
func Default() *Config {
	return &Config{
		APIVersion:        APIVersion,
		Kind:              Kind,
		Socket:            Socket{Path: "/run/hsm-kms/kms.sock", Mode: 0o600},
		Profile:           ProfileAESGCM,
		RefuseKeys:        []string{},
		ReadRings:         []ReadRing{},
		StateDir:          "/var/lib/hsm-kms",
		RefreshInterval:   Duration(30 * time.Second),
		ProbeInterval:     Duration(30 * time.Second),
		DeferGrace:        Duration(24 * time.Hour),
		HTTP:              HTTP{Address: "127.0.0.1:9808"},
		WriteContinuation: Duration(time.Hour),
		Audit:             Audit{Path: "/var/log/hsm-kms/audit.log", MaxSizeMB: 100},
		Logging:           Logging{Level: "info", Format: "json"},
	}
}

// UnmarshalYAML fills in a token's defaults before its fields are read. It must be this older form of the method: the
// function that it is given keeps the decoder's KnownFields, which Decode of a node forgets.
func (t *Token) UnmarshalYAML(unmarshal func(any) error) error {
	type fields Token
	*t = Token{Login: LoginPIN, MaxSessions: 8, CallTimeout: Duration(2 * time.Second), ConnectTimeout: Duration(30 * time.Second)}
	return unmarshal((*fields)(t))
}

// TokenNames are the names of the tokens, in their order.
func (c *Config) TokenNames() []string {
	var names []string
	for _, t := range c.Tokens {
		names = append(names, t.Name)
	}
	return names
}
