package manifests_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/manifests"
)

// tool finds a program, or skips the test, loudly. Where everything is to be tested (HSM_KMS_REQUIRE_TOKENS, which
// make test sets where test/tools/need.sh can install) it must be there.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("HSM_KMS_REQUIRE_TOKENS") == "1" {
			t.Fatalf("%s is not installed: test/tools/need.sh checkers", name)
		}
		t.Skipf("NOT CHECKED: %s is not installed (test/tools/need.sh checkers)", name)
	}
	return path
}

// runTool runs a program and fails the test when it fails.
func runTool(t *testing.T, path string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), path, args...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return string(out)
}

// write writes the files into a folder and gives their paths by name.
func write(t *testing.T, files []manifests.File) map[string]string {
	t.Helper()
	dir := t.TempDir()
	paths := map[string]string{}
	for _, f := range files {
		path := filepath.Join(dir, filepath.Base(f.Path))
		if err := os.WriteFile(path, f.Content, 0o600); err != nil {
			t.Fatal(err)
		}
		paths[filepath.Base(f.Path)] = path
	}
	return paths
}

// waitsForLogins wants a unit that is given the time to end a login before systemd kills its workers.
func waitsForLogins(t *testing.T, unit string, v *manifests.Values) {
	t.Helper()
	seconds := 0
	for _, token := range v.Tokens {
		seconds = max(seconds, int(token.ConnectTimeout.Seconds()))
	}
	for _, line := range []string{"\nKillMode=mixed\n", fmt.Sprintf("\nTimeoutStopSec=%d\n", seconds+20)} {
		if !strings.Contains(unit, line) {
			t.Errorf("%q is not in:\n%s", line, unit)
		}
	}
}

func TestSystemd(t *testing.T) {
	t.Parallel()
	analyze := tool(t, "systemd-analyze")
	for name, v := range map[string]manifests.Values{
		"usual": usual(), "odd": odd(),
		"credential": changed(func(v *manifests.Values) { v.Tokens[0].PINFile = "hsm-pin" }),
		"group":      changed(func(v *manifests.Values) { v.SocketMode, v.SocketGroup = "0660", "kube" }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v.Program = "/bin/sh" // verify wants a program that is there
			files := render(t, "systemd", v)
			paths := write(t, files)
			// Warnings count: verify succeeds with an unknown directive. What it says of other units is not ours.
			said := runTool(t, analyze, "verify", "--man=no", "--recursive-errors=no", paths["hsm-kms.service"], paths["hsm-kms.socket"])
			if strings.Contains(said, "hsm-kms") {
				t.Errorf("systemd-analyze verify: %s", said)
			}
			// 0 is best, 10 is worst; a service without any of it has 9.6.
			runTool(t, analyze, "security", "--offline=yes", "--threshold=20", paths["hsm-kms.service"])
			waitsForLogins(t, string(files[0].Content), &v)
			if text := string(files[0].Content); v.Tokens[0].PINFile == "hsm-pin" && !strings.Contains(text, "\nLoadCredential=hsm-pin:/etc/hsm-kms/hsm-pin\n") {
				t.Errorf("the credential is not loaded:\n%s", text)
			}
			if text := string(files[1].Content); !strings.Contains(text, "ListenStream="+v.SocketPath+"\n") || !strings.Contains(text, "SocketMode="+v.SocketMode+"\n") {
				t.Errorf("socket unit:\n%s", text)
			}
		})
	}
}

func TestRotateTimer(t *testing.T) {
	t.Parallel()
	analyze := tool(t, "systemd-analyze")
	for name, c := range map[string]struct {
		values manifests.Values
		says   string
	}{
		"usual":      {usual(), " keys rotate --if-older-than 2160h --config /etc/hsm-kms/config.yaml\n"},
		"odd":        {odd(), " keys rotate --if-older-than 2160h --activate-in 24h --config "}, // several tokens
		"credential": {changed(func(v *manifests.Values) { v.Tokens[0].PINFile = "hsm-pin" }), "\nLoadCredential=hsm-pin:/etc/hsm-kms/hsm-pin\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c.values.Program = "/bin/sh" // verify wants a program that is there
			files := render(t, "rotate-timer", c.values)
			paths := write(t, files)
			said := runTool(t, analyze, "verify", "--man=no", "--recursive-errors=no", paths["hsm-kms-rotate.service"], paths["hsm-kms-rotate.timer"])
			if strings.Contains(said, "hsm-kms") {
				t.Errorf("systemd-analyze verify: %s", said)
			}
			runTool(t, analyze, "security", "--offline=yes", "--threshold=20", paths["hsm-kms-rotate.service"])
			waitsForLogins(t, string(files[0].Content), &c.values)
			if text := string(files[0].Content); !strings.Contains(text, c.says) {
				t.Errorf("%q is not in:\n%s", c.says, text)
			}
		})
	}
}

// kubeadmConfig is the part of kubeadm's ClusterConfiguration v1beta4 that is in use.
type kubeadmConfig struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	APIServer  struct {
		ExtraArgs []struct {
			Name  string `json:"name"`
			Value string `json:"value"`
		} `json:"extraArgs"`
		ExtraVolumes []struct {
			Name      string `json:"name"`
			HostPath  string `json:"hostPath"`
			MountPath string `json:"mountPath"`
			PathType  string `json:"pathType"`
			ReadOnly  bool   `json:"readOnly"`
		} `json:"extraVolumes"`
	} `json:"apiServer"`
}

func TestKubeadm(t *testing.T) {
	t.Parallel()
	v := usual()
	files := render(t, "kubeadm", v)
	var config kubeadmConfig
	strictly(t, files[0], &config)
	if args := config.APIServer.ExtraArgs; len(args) != 2 || args[0].Value != v.EncryptionConfig || args[1].Value != "true" {
		t.Errorf("arguments %+v", args)
	}
	var patch []struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value"`
	}
	strictly(t, files[1], &patch)
	var commands []string
	for _, p := range patch {
		if p.Op != "add" || !slices.Contains([]string{"/spec/containers/0/command/-", "/spec/containers/0/volumeMounts/-", "/spec/volumes/-"}, p.Path) {
			t.Errorf("%+v", p)
		}
		if text, ok := p.Value.(string); ok {
			commands = append(commands, text)
		}
	}
	if want := []string{"--encryption-provider-config=" + v.EncryptionConfig, "--encryption-provider-config-automatic-reload=true"}; !slices.Equal(commands, want) {
		t.Errorf("commands %q, want %q", commands, want)
	}
}

func TestKind(t *testing.T) {
	t.Parallel()
	files := render(t, "kind", usual())
	var cluster struct {
		Kind       string `json:"kind"`
		APIVersion string `json:"apiVersion"`
		Name       string `json:"name"`
		Nodes      []struct {
			Role string `json:"role"`
		} `json:"nodes"`
		Patches []string `json:"kubeadmConfigPatches"`
	}
	strictly(t, files[0], &cluster)
	if cluster.Kind != "Cluster" || len(cluster.Nodes) != 1 || len(cluster.Patches) != 2 {
		t.Errorf("%+v", cluster)
	}
	strictly(t, manifests.File{Content: []byte(cluster.Patches[0])}, &kubeadmConfig{})
	var old map[string]any
	if err := yaml.Unmarshal([]byte(cluster.Patches[1]), &old); err != nil || old["apiVersion"] != "kubeadm.k8s.io/v1beta3" {
		t.Errorf("%v, %v", old, err)
	}
	text := string(files[1].Content)
	checkDockerfile(t, text)
	if !regexp.MustCompile(`(?m)^ARG NODE=kindest/node:v1\.\d+\.\d+@sha256:[0-9a-f]{64}$`).MatchString(text) {
		t.Errorf("the node's image is not pinned by digest:\n%s", text)
	}
}

func TestDockerfile(t *testing.T) {
	t.Parallel()
	text := string(render(t, "dockerfile", usual())[0].Content)
	checkDockerfile(t, text)
	mod, err := os.ReadFile("../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	version := regexp.MustCompile(`(?m)^go (\d+\.\d+)`).FindSubmatch(mod)
	if !strings.Contains(text, "golang:"+string(version[1])+"-") {
		t.Errorf("go.mod wants Go %s, and the image is built with another", version[1])
	}
	for _, image := range regexp.MustCompile(`(?m)^ARG (?:GO|DEBIAN|BASE)=(\S+)$|^FROM ([^$]\S*)`).FindAllString(text, -1) {
		if !regexp.MustCompile(`@sha256:[0-9a-f]{64}$`).MatchString(image) {
			t.Errorf("%s is not pinned by digest", image)
		}
	}
	if last := text[strings.LastIndex(text, "\nFROM "):]; !strings.HasPrefix(last, "\nFROM ${BASE} AS hsm-kms") || !strings.Contains(last, "ENTRYPOINT") {
		t.Errorf("the last stage is not the program's:\n%s", last)
	}
}

// checkDockerfile checks form: known instructions, stages that exist, arguments that are declared, JSON lists.
func checkDockerfile(t *testing.T, text string) {
	t.Helper()
	text = strings.ReplaceAll(text, "\\\n", " ")
	stages, args := map[string]bool{}, map[string]bool{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		for _, used := range regexp.MustCompile(`\$\{([A-Z_]+)\}`).FindAllStringSubmatch(rest, -1) {
			if !args[used[1]] && used[1] != "PIN" {
				t.Errorf("%s is not declared: %s", used[1], line)
			}
		}
		switch word {
		case "ARG":
			name, _, _ := strings.Cut(rest, "=")
			args[name] = true
		case "FROM":
			if fields := strings.Fields(rest); len(fields) == 3 {
				stages[fields[2]] = true
			}
		case "COPY":
			if from := regexp.MustCompile(`--from=(\S+)`).FindStringSubmatch(rest); from != nil && !stages[from[1]] {
				t.Errorf("no stage %s: %s", from[1], line)
			}
		case "ENTRYPOINT", "CMD":
			var list []string
			if err := json.Unmarshal([]byte(rest), &list); err != nil {
				t.Errorf("%s: %v", line, err)
			}
		case "RUN", "WORKDIR", "USER":
		default:
			t.Errorf("unknown instruction: %s", line)
		}
	}
}
