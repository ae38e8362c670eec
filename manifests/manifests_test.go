package manifests_test

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiserverv1 "k8s.io/apiserver/pkg/apis/apiserver/v1"
	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/internal/hint"
	"github.com/hsm-kms/hsm-kms/manifests"
)

// usual is what a configuration of defaults gives.
func usual() manifests.Values {
	return manifests.Values{
		ConfigPath: "/etc/hsm-kms/config.yaml", SocketPath: "/run/hsm-kms/kms.sock", SocketMode: "0600",
		StateDir: "/var/lib/hsm-kms", AuditPath: "/var/log/hsm-kms/audit.log", HTTPAddress: "127.0.0.1:9808",
		Tokens:  []manifests.Token{{Name: "hsm-a", Label: "k8s", Module: "/opt/vendor/lib/libvendor.so", PINFile: "/etc/hsm-kms/pin", AllowGroupPIN: true}},
		Version: "1.2.3", Image: "registry.example.com/hsm-kms:1.2.3", Program: "/usr/local/bin/hsm-kms",
		AllowPodVolumes: true, Container: "kube-apiserver",
		EncryptionConfig: "/etc/kubernetes/enc/encryption.yaml", Provider: "hsm-kms", Resources: []string{"secrets"},
	}
}

// odd has every character in its paths that a template could trip over.
func odd() manifests.Values {
	v := usual()
	v.ConfigPath, v.StateDir, v.AuditPath = `/etc/a b: #"c/config.yaml`, `/var/lib/st%ate \dir`, `/srv/$log/{x}/audit.log`
	v.HTTPAddress, v.Image = "[::1]:9808", `registry:5000/x@sha256:abc`
	v.Tokens = []manifests.Token{
		{Name: "hsm-a", Module: "/usr/lib/libvendor.so", PINFile: `/etc/a b: #"c/pin`, AllowGroupPIN: true},
		{Name: "hsm-b", Module: "/usr/lib/softhsm/libsofthsm2.so", PINFile: "/etc/pins/b", AllowGroupPIN: true},
		{Name: "hsm-c", Module: "/opt/two/lib/libtwo.so", PINFile: "/etc/pins/c", AllowGroupPIN: true},
	}
	return v
}

// changed is usual with a change.
func changed(change func(*manifests.Values)) manifests.Values {
	v := usual()
	change(&v)
	return v
}

func render(t *testing.T, name string, v manifests.Values) []manifests.File {
	t.Helper()
	files, err := manifests.Render(name, v)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if text := string(f.Content); text == "" || !strings.HasSuffix(text, "\n") || strings.HasSuffix(text, "\n\n") ||
			strings.Contains(text, "<no value>") || strings.Contains(text, "{{if") {
			t.Errorf("%s is not a proper file:\n%s", f.Path, text)
		}
	}
	return files
}

// strictly decodes a file of one kind, in which every field must be known.
func strictly(t *testing.T, f manifests.File, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(f.Content, into); err != nil {
		t.Fatalf("%v:\n%s", err, f.Content)
	}
}

func TestEveryManifestRenders(t *testing.T) {
	t.Parallel()
	for _, name := range manifests.Names() {
		for _, v := range []manifests.Values{usual(), odd()} {
			if name == "podmonitor" {
				v.HTTPAddress = "0.0.0.0:9808"
			}
			if len(render(t, name, v)) == 0 || manifests.Short(name) == "" {
				t.Errorf("%s has no files or no description", name)
			}
		}
	}
	if _, err := manifests.Render("nonsense", usual()); err == nil || !strings.Contains(err.Error(), "static-pod") {
		t.Errorf("an unknown name: %v", err)
	}
}

func TestEncryptionConfig(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		values    manifests.Values
		providers string // in order
	}{
		{"new", usual(), "kms hsm-kms, identity"},
		{"odd", odd(), "kms hsm-kms, identity"},
		{"plain text, step 1", changed(func(v *manifests.Values) { v.Plaintext = true }), "identity, kms hsm-kms"},
		{"plain text, step 2", changed(func(v *manifests.Values) { v.Plaintext, v.Step = true, 2 }), "kms hsm-kms, identity"},
		{"aescbc, step 1", changed(func(v *manifests.Values) { v.From = "aescbc" }), "aescbc, kms hsm-kms, identity"},
		{"aescbc, step 2", changed(func(v *manifests.Values) { v.From, v.Step = "aescbc", 2 }), "kms hsm-kms, aescbc, identity"},
		{"secretbox, step 2", changed(func(v *manifests.Values) { v.From, v.Step = "secretbox", 2 }), "kms hsm-kms, secretbox, identity"},
		{"other plugin, step 1", changed(func(v *manifests.Values) { v.From, v.FromEndpoint = "vault", "unix:///run/vault.sock" }), "kms vault, kms hsm-kms, identity"},
		{"other plugin, step 2", changed(func(v *manifests.Values) { v.From, v.FromEndpoint, v.Step = "vault", "unix:///run/vault.sock", 2 }), "kms hsm-kms, kms vault, identity"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			v := c.values
			v.Resources = []string{"secrets", "widgets.example.com"}
			files := render(t, "encryption-config", v)
			var config apiserverv1.EncryptionConfiguration
			strictly(t, files[0], &config)
			if config.APIVersion != "apiserver.config.k8s.io/v1" || config.Kind != "EncryptionConfiguration" || len(config.Resources) != 1 {
				t.Fatalf("%+v", config)
			}
			entry := config.Resources[0]
			if !slices.Equal(entry.Resources, v.Resources) {
				t.Errorf("resources %q", entry.Resources)
			}
			var providers []string
			for _, p := range entry.Providers {
				providers = append(providers, providerName(p))
				if p.KMS != nil && p.KMS.Name == "hsm-kms" && (p.KMS.APIVersion != "v2" || p.KMS.Endpoint != "unix://"+v.SocketPath || p.KMS.CacheSize != nil) {
					t.Errorf("%+v", p.KMS)
				}
			}
			if got := strings.Join(providers, ", "); got != c.providers {
				t.Errorf("providers are %s, want %s", got, c.providers)
			}
		})
	}
}

func providerName(p apiserverv1.ProviderConfiguration) string {
	switch {
	case p.KMS != nil:
		return "kms " + p.KMS.Name
	case p.AESCBC != nil:
		return "aescbc"
	case p.Secretbox != nil:
		return "secretbox"
	case p.Identity != nil:
		return "identity"
	}
	return "?"
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		manifest string
		change   func(*manifests.Values)
		says     string // in the error or its hint
	}{
		{"encryption-config", func(v *manifests.Values) { v.From = "vault" }, "--from-endpoint"},
		{"encryption-config", func(v *manifests.Values) { v.From, v.FromEndpoint = "vault", "/run/vault.sock" }, "--from-endpoint"},
		{"encryption-config", func(v *manifests.Values) { v.From, v.FromEndpoint = "aescbc", "unix:///x" }, "no KMS plugin"},
		{"encryption-config", func(v *manifests.Values) { v.FromEndpoint = "unix:///x" }, "needs --from"},
		{"encryption-config", func(v *manifests.Values) { v.From = "identity" }, "--plaintext"},
		{"encryption-config", func(v *manifests.Values) { v.From, v.FromEndpoint = "hsm-kms", "unix:///x" }, "own provider"},
		{"encryption-config", func(v *manifests.Values) { v.From, v.Plaintext = "aescbc", true }, "exclude each other"},
		{"encryption-config", func(v *manifests.Values) { v.Step = 3 }, "1 and 2"},
		{"encryption-config", func(v *manifests.Values) { v.Step = 1 }, "add what the cluster holds today"},
		{"encryption-config", func(v *manifests.Values) { v.Step = 2 }, "add what the cluster holds today"},
		{"encryption-config", func(v *manifests.Values) { v.Provider = "a:b" }, "--name"},
		{"encryption-config", func(v *manifests.Values) { v.Provider = "" }, "--name"},
		{"static-pod", func(v *manifests.Values) { v.Image = "" }, "--image"},
		{"static-pod", func(v *manifests.Values) { v.SocketGroup = "kube" }, "getent group kube"},
		{"encryption-config", func(v *manifests.Values) { v.Resources = nil }, "--resources"},
		{"static-pod", func(v *manifests.Values) { v.Tokens[0].PINFile = "pin" }, "absolute path"},
		{"sidecar", func(v *manifests.Values) { v.AllowPodVolumes = false }, "allowPodVolumes: true"},
		{"sidecar", func(v *manifests.Values) { v.Tokens[0].AllowGroupPIN = false }, "allowGroupPIN: true"},
		{"sidecar", func(v *manifests.Values) { v.Tokens[0].PINFile = "pin" }, "absolute path"},
		{"sidecar", func(v *manifests.Values) { v.Image = "" }, "--image"},
		{"sidecar", func(v *manifests.Values) {
			v.Tokens = append(v.Tokens, manifests.Token{Name: "hsm-b", Module: "/m", PINFile: "/etc/b/pin", AllowGroupPIN: true})
		}, "different names"},
		{"systemd", func(v *manifests.Values) { v.Tokens[0].PINFile = "p:n" }, "no name that a unit can hold"},
		{"systemd", func(v *manifests.Values) { v.SocketPath = "/run/a b/kms.sock" }, "socket.path"},
	} {
		if _, err := manifests.Render(c.manifest, changed(c.change)); err == nil || !strings.Contains(err.Error()+hint.Of(err), c.says) {
			t.Errorf("%s: error %v with hint %q, want %q", c.manifest, err, hint.Of(err), c.says)
		}
	}
}

func TestStaticPod(t *testing.T) {
	t.Parallel()
	for name, v := range map[string]manifests.Values{
		"usual": usual(), "odd": odd(), "no HTTP": changed(func(v *manifests.Values) { v.HTTPAddress = "" }),
		"no trail": changed(func(v *manifests.Values) { v.AuditPath = "" }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var pod corev1.Pod
			strictly(t, render(t, "static-pod", v)[0], &pod)
			checkPod(t, &pod, v)
		})
	}
}

// checkPod holds a pod against what the issue asks of it, and its mounts against the configuration.
func checkPod(t *testing.T, pod *corev1.Pod, v manifests.Values) {
	t.Helper()
	spec, c := pod.Spec, pod.Spec.Containers[0]
	yes := func(b *bool) bool { return b != nil && *b }
	no := func(b *bool) bool { return b != nil && !*b }
	s := c.SecurityContext
	for what, ok := range map[string]bool{
		"no token":            no(spec.AutomountServiceAccountToken),
		"host network":        spec.HostNetwork,
		"priority":            spec.PriorityClassName == "system-node-critical",
		"seccomp":             spec.SecurityContext.SeccompProfile.Type == corev1.SeccompProfileTypeRuntimeDefault,
		"read-only root":      yes(s.ReadOnlyRootFilesystem),
		"no escalation":       no(s.AllowPrivilegeEscalation),
		"no capabilities":     slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}) && len(s.Capabilities.Add) == 0,
		"memory limit":        !c.Resources.Limits.Memory().IsZero(),
		"CPU limit":           !c.Resources.Limits.Cpu().IsZero(),
		"CPU request":         !c.Resources.Requests.Cpu().IsZero(),
		"image":               c.Image == v.Image,
		"arguments":           slices.Equal(c.Args, []string{"serve", "--config", v.ConfigPath}),
		"liveness is livez":   v.HTTPAddress == "" && c.LivenessProbe == nil || c.LivenessProbe.HTTPGet.Path == "/livez" && c.LivenessProbe.HTTPGet.Port.IntValue() == 9808,
		"no kill for the HSM": c.StartupProbe == nil || c.StartupProbe.HTTPGet.Path == "/livez",
	} {
		if !ok {
			t.Errorf("%s: not so", what)
		}
	}
	mounts := map[string]corev1.VolumeMount{}
	for _, m := range c.VolumeMounts {
		mounts[m.MountPath] = m
	}
	volumes := map[string]string{}
	for _, volume := range spec.Volumes {
		if _, twice := volumes[volume.Name]; twice {
			t.Errorf("two volumes are called %s", volume.Name)
		}
		volumes[volume.Name] = volume.HostPath.Path
	}
	for path, m := range mounts {
		if volumes[m.Name] != path {
			t.Errorf("%s is mounted from %q", path, volumes[m.Name])
		}
	}
	for path, readOnly := range map[string]bool{"/run/hsm-kms": false, v.StateDir: false} {
		if m, ok := mounts[path]; !ok || m.ReadOnly != readOnly {
			t.Errorf("mount of %s: %+v", path, m)
		}
	}
	for _, token := range v.Tokens {
		pinFolder, moduleFolder := folder(token.PINFile), folder(token.Module)
		if m, ok := mounts[pinFolder]; !ok || !m.ReadOnly {
			t.Errorf("PIN folder %s: %+v", pinFolder, m)
		}
		m, ok := mounts[moduleFolder]
		if !ok {
			m, ok = mounts[token.Module]
		}
		if !ok || !m.ReadOnly || m.MountPath == "/usr/lib" {
			t.Errorf("module %s: %+v", token.Module, m)
		}
	}
}

// TestSidecar: not root, the socket in a volume of the pod, the PIN in a Secret that the pod's group reads.
func TestSidecar(t *testing.T) {
	t.Parallel()
	for name, v := range map[string]manifests.Values{
		"usual": usual(), "odd": odd(),
		"any address": changed(func(v *manifests.Values) { v.HTTPAddress, v.AuditPath = "0.0.0.0:9808", "" }),
		"group":       changed(func(v *manifests.Values) { v.SocketMode, v.SocketGroup = "0660", "2000" }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var patch appsv1.Deployment
			strictly(t, render(t, "sidecar", v)[0], &patch)
			spec := patch.Spec.Template.Spec
			c, s := spec.InitContainers[0], spec.InitContainers[0].SecurityContext
			group := int64(65532)
			if name == "group" {
				group = 2000
			}
			for what, ok := range map[string]bool{
				"sidecar":                                c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways,
				"not root":                               *s.RunAsNonRoot && *s.RunAsUser == 65532 && *s.RunAsGroup == 65532,
				"closed":                                 *s.ReadOnlyRootFilesystem && !*s.AllowPrivilegeEscalation && slices.Equal(s.Capabilities.Drop, []corev1.Capability{"ALL"}),
				"group":                                  *spec.SecurityContext.FSGroup == group,
				"configuration":                          slices.Equal(c.Args, []string{"serve", "--config", "/etc/hsm-kms/config.yaml"}),
				"probes only where kubelet reaches them": (c.LivenessProbe != nil) == (name == "any address"),
				"kube-apiserver":                         spec.Containers[0].Name == "kube-apiserver" && spec.Containers[0].VolumeMounts[0].MountPath == "/run/hsm-kms" && spec.Containers[0].VolumeMounts[0].ReadOnly,
			} {
				if !ok {
					t.Errorf("%s: not so", what)
				}
			}
			checkSidecarVolumes(t, &spec, v)
		})
	}
}

// checkSidecarVolumes: each mount has a volume, nothing is the host's, and each PIN is there with mode 0440.
func checkSidecarVolumes(t *testing.T, spec *corev1.PodSpec, v manifests.Values) {
	t.Helper()
	volumes := map[string]corev1.Volume{}
	for _, volume := range spec.Volumes {
		if volume.HostPath != nil || volumes[volume.Name].Name != "" {
			t.Errorf("volume %s: %+v", volume.Name, volume)
		}
		volumes[volume.Name] = volume
	}
	files := map[string]int32{} // path in the container: mode
	for _, m := range spec.InitContainers[0].VolumeMounts {
		switch volume := volumes[m.Name]; {
		case volume.Secret != nil:
			for _, item := range volume.Secret.Items {
				files[m.MountPath+"/"+item.Path] = *volume.Secret.DefaultMode
			}
		case volume.Projected != nil:
			for _, source := range volume.Projected.Sources {
				if source.Secret != nil {
					for _, item := range source.Secret.Items {
						files[m.MountPath+"/"+item.Path] = *volume.Projected.DefaultMode
					}
				}
			}
		case volume.EmptyDir == nil:
			t.Errorf("%s is mounted from nothing: %+v", m.MountPath, m)
		}
	}
	for _, token := range v.Tokens {
		if files[token.PINFile] != 0o440 {
			t.Errorf("PIN file %s: mode %o", token.PINFile, files[token.PINFile])
		}
	}
	for _, m := range spec.Containers[0].VolumeMounts {
		if volumes[m.Name].Name == "" {
			t.Errorf("kube-apiserver mounts %s from nothing", m.MountPath)
		}
	}
}

func folder(path string) string { return path[:strings.LastIndex(path, "/")] }

// TestPodFollowsLinks: a module that is a link is mounted with every folder on its way, or the pod cannot load it.
func TestPodFollowsLinks(t *testing.T) {
	t.Parallel()
	v := usual()
	v.Tokens[0].Module = "/usr/lib/softhsm/libsofthsm2.so"
	v.Tokens[0].Links = []string{"/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so", "/usr/lib/x86_64-linux-gnu/libvendor.so.1"}
	var pod corev1.Pod
	strictly(t, render(t, "static-pod", v)[0], &pod)
	for _, path := range []string{"/usr/lib/softhsm", "/usr/lib/x86_64-linux-gnu/softhsm", "/usr/lib/x86_64-linux-gnu/libvendor.so.1"} {
		if !slices.ContainsFunc(pod.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path && m.ReadOnly }) {
			t.Errorf("%s is not mounted: %+v", path, pod.Spec.Containers[0].VolumeMounts)
		}
	}
}

// TestPodHasTheSocketsGroup: without capabilities, root can give a file only to a group that it is in.
func TestPodHasTheSocketsGroup(t *testing.T) {
	t.Parallel()
	var pod corev1.Pod
	strictly(t, render(t, "static-pod", changed(func(v *manifests.Values) { v.SocketMode, v.SocketGroup = "0660", "65532" }))[0], &pod)
	if !slices.Equal(pod.Spec.SecurityContext.SupplementalGroups, []int64{65532}) {
		t.Errorf("supplemental groups: %v", pod.Spec.SecurityContext.SupplementalGroups)
	}
}
