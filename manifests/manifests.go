// Package manifests has what an operator installs around the program: kube-apiserver's EncryptionConfiguration, a static
// pod, systemd units, what kubeadm and kind need, a Dockerfile, alert rules,
// scraping, a dashboard. The files are templates of text, so that nothing of Kubernetes is linked into the program for
// them. Tests check them with the programs that read them.
//
// It depends on hint alone. Functions keep nothing and are safe for concurrent use.
package manifests

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
)

//go:embed templates
var templates embed.FS

// File is one file to install.
type File struct {
	Path    string // where it goes; a name without a slash goes where the operator likes
	Content []byte
}

// manifest is one NAME of the command.
type manifest struct {
	name, short string
	// files are names of templates and the paths they are for.
	files []target
	check func(*Values) error // nil: anything goes
}

type target struct{ template, path string }

// all returns the manifests, in the order of the command's help.
func all() []manifest {
	return []manifest{
		{"encryption-config", "kube-apiserver's EncryptionConfiguration", []target{{"encryption-config.yaml", ""}}, (*Values).checkEncryption},
		{"static-pod", "the plugin as a static pod of kubelet", []target{{"static-pod.yaml", "/etc/kubernetes/manifests/hsm-kms.yaml"}}, (*Values).checkPod},
		{"systemd", "the plugin as a systemd service with a socket, under a user of its own", []target{
			{"hsm-kms.service", "/etc/systemd/system/hsm-kms.service"},
			{"hsm-kms.socket", "/etc/systemd/system/hsm-kms.socket"},
			{"hsm-kms.sysusers", "/etc/sysusers.d/hsm-kms.conf"},
			{"as-plugin", "/usr/local/sbin/hsm-kms-as-plugin"},
		}, (*Values).checkUnit},
		{"rotate-timer", "a systemd timer that rotates the master key when it is 90 days old", []target{
			{"hsm-kms-rotate.service", "/etc/systemd/system/hsm-kms-rotate.service"},
			{"hsm-kms-rotate.timer", "/etc/systemd/system/hsm-kms-rotate.timer"},
		}, (*Values).checkUnit},
		{"operator", "what hsm-kms operate needs: CRD, roles, and a systemd service", []target{
			{"keyring-crd.yaml", "keyring-crd.yaml"},
			{"operate-rbac.yaml", "operate-rbac.yaml"},
			{"hsm-kms-operate.service", "/etc/systemd/system/hsm-kms-operate.service"},
		}, (*Values).checkOperator},
		{"operator-pod", "hsm-kms operate as a static pod of kubelet", []target{
			{"operate-pod.yaml", "/etc/kubernetes/manifests/hsm-kms-operate.yaml"},
		}, (*Values).checkOperatorPod},
		{"sidecar", "the plugin in the pod of a hosted control plane's kube-apiserver, not as root", []target{
			{"sidecar.yaml", "hsm-kms-sidecar.yaml"},
		}, (*Values).checkSidecar},
		{"kubeadm", "what makes kubeadm's kube-apiserver use the plugin", []target{
			{"kubeadm-config.yaml", "kubeadm-config.yaml"},
			{"kube-apiserver-patch.yaml", "kube-apiserver0+json.yaml"},
		}, nil},
		{"kind", "a kind cluster with SoftHSM, for a trial on a laptop", []target{
			{"kind.yaml", "kind.yaml"},
			{"kind.dockerfile", "Dockerfile.kind"},
			{"encryption-config.yaml", "encryption.yaml"},
			{"hsm-kms.service", "hsm-kms.service"},
			{"hsm-kms.socket", "hsm-kms.socket"},
		}, (*Values).checkKind},
		{"dockerfile", "an image with the program, and how a vendor's module gets into it", []target{{"dockerfile", "Dockerfile"}}, nil},
		{"alerts", "Prometheus alert rules", []target{{"alerts.yaml", "hsm-kms.rules.yaml"}}, nil},
		{"podmonitor", "how the Prometheus operator scrapes the static pods", []target{{"podmonitor.yaml", "podmonitor.yaml"}}, (*Values).checkPodMonitor},
		{"scrape-config", "how Prometheus scrapes the plugins without an operator", []target{{"scrape-config.yaml", "hsm-kms.scrape.yaml"}}, (*Values).checkScrape},
		{"dashboard", "a Grafana dashboard", []target{{"dashboard.json", "hsm-kms.json"}}, nil},
	}
}

// Names returns what Render knows.
func Names() []string {
	var names []string
	for _, m := range all() {
		names = append(names, m.name)
	}
	return names
}

// Short says what a manifest is, in a line; "" for an unknown one.
func Short(name string) string {
	for _, m := range all() {
		if m.name == name {
			return m.short
		}
	}
	return ""
}

// FileNames returns the names of the files of a manifest, in the order in which Render gives them.
func FileNames(name string) []string {
	var names []string
	for _, m := range all() {
		if m.name != name {
			continue
		}
		for _, f := range m.files {
			names = append(names, filepath.Base(f.path))
		}
	}
	return names
}

// Render fills in the files of the manifest of that name. Errors say what in v does not fit, most with a hint.
func Render(name string, v Values) ([]File, error) {
	at := slices.IndexFunc(all(), func(m manifest) bool { return m.name == name })
	if at < 0 {
		return nil, fmt.Errorf("unknown manifest %q: %s are known", name, strings.Join(Names(), ", "))
	}
	m := all()[at]
	if m.check != nil {
		if err := m.check(&v); err != nil {
			return nil, err
		}
	}
	var files []File
	for _, f := range m.files {
		content, err := fill(f.template, &v)
		if err != nil {
			return nil, fmt.Errorf("rendering %s: %w", name, err)
		}
		path := f.path
		if name == "encryption-config" {
			path = v.EncryptionConfig
		}
		files = append(files, File{Path: path, Content: content})
	}
	return files, nil
}

// fill gives a file as it is, or, when it is a template, filled in. Rules and dashboards have braces of their own and
// are no templates.
func fill(name string, v *Values) ([]byte, error) {
	text, err := templates.ReadFile("templates/" + name)
	if err != nil {
		return templates.ReadFile("templates/" + name + ".static")
	}
	parsed, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{
		"quote": quote, "quotes": quotes, "unit": unit, "shell": shell, "join": strings.Join,
	}).Parse(string(text))
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := parsed.Execute(&out, v); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

// quote writes a text as a JSON string, which YAML and Dockerfiles read too.
func quote(text string) (string, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(text); err != nil {
		return "", err
	}
	return strings.TrimSuffix(b.String(), "\n"), nil
}

// quotes writes texts as a JSON list.
func quotes(texts []string) (string, error) {
	var words []string
	for _, text := range texts {
		word, err := quote(text)
		if err != nil {
			return "", err
		}
		words = append(words, word)
	}
	return "[" + strings.Join(words, ", ") + "]", nil
}

// shell writes a text as one word of sh.
func shell(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// unit writes a text for a systemd unit (systemd.syntax(7), systemd.unit(5)): specifiers off, blanks and quotes kept.
func unit(text string) string {
	text = strings.ReplaceAll(text, "%", "%%")
	if !strings.ContainsAny(text, " \t\"'\\;$") {
		return text
	}
	text = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "$", "$$").Replace(text)
	return `"` + text + `"`
}
