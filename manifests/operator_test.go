package manifests_test

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"

	"github.com/hsm-kms/hsm-kms/manifests"
)

// A real API server takes the CRD and the roles, and hsm-kms operate works under them, in test/e2e. Here: what depends on the
// configuration.
func TestOperator(t *testing.T) {
	t.Parallel()
	v := usual()
	v.Resources = []string{"secrets", "widgets.example.com", "*.apps", "*."}
	files := render(t, "operator", v)
	var rules []rbacv1.PolicyRule
	for text := range bytes.SplitSeq(files[1].Content, []byte("\n---\n")) {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal(text, &role); err != nil {
			t.Fatal(err)
		}
		if role.Kind == "ClusterRole" && role.Name == "hsm-kms-operate-rewrite" {
			rules = role.Rules
		}
	}
	var got []string
	for _, r := range rules {
		got = append(got, strings.Join(r.Verbs, "+")+" "+strings.Join(r.Resources, "+")+"."+strings.Join(r.APIGroups, "+"))
	}
	if text := strings.Join(got, ", "); text != "patch secrets., patch widgets.example.com, patch *.apps, patch *." {
		t.Errorf("it may %s", text)
	}
	v.Resources = nil
	if _, err := manifests.Render("operator", v); err == nil {
		t.Error("no error without --resources")
	}
}

func TestOperatorUnit(t *testing.T) {
	t.Parallel()
	analyze := tool(t, "systemd-analyze")
	for name, v := range map[string]manifests.Values{"usual": usual(), "odd": odd()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v.Program = "/bin/sh" // verify wants a program that is there
			files := render(t, "operator", v)
			paths := write(t, files)
			said := runTool(t, analyze, "verify", "--man=no", "--recursive-errors=no", paths["hsm-kms-operate.service"])
			if strings.Contains(said, "hsm-kms") {
				t.Errorf("systemd-analyze verify: %s", said)
			}
			runTool(t, analyze, "security", "--offline=yes", "--threshold=25", paths["hsm-kms-operate.service"])
			text := string(files[2].Content)
			for _, token := range v.Tokens {
				if !strings.Contains(strings.NewReplacer(`\`, "", `"`, "").Replace(text), "InaccessiblePaths=-"+strings.NewReplacer(`\`, "", `"`, "").Replace(token.File())+"\n") {
					t.Errorf("it could read the PIN %s:\n%s", token.File(), text)
				}
			}
		})
	}
}

// The pod mounts no folder with a PIN or with the cluster's own keys in it.
func TestOperatorPod(t *testing.T) {
	t.Parallel()
	for _, v := range []manifests.Values{usual(), odd()} {
		var pod corev1.Pod
		strictly(t, render(t, "operator-pod", v)[0], &pod)
		mounts := map[string]string{}
		for _, volume := range pod.Spec.Volumes {
			mounts[volume.Name] = volume.HostPath.Path
		}
		for _, mount := range pod.Spec.Containers[0].VolumeMounts {
			if mounts[mount.Name] != mount.MountPath {
				t.Errorf("%s is mounted at %s", mounts[mount.Name], mount.MountPath)
			}
		}
		for _, path := range mounts {
			for _, hidden := range v.NotForOperate() {
				if hidden == path || strings.HasPrefix(hidden, path+"/") {
					t.Errorf("the pod has %s, and with it %s", path, hidden)
				}
			}
		}
		if len(mounts) < 7 || pod.Spec.Containers[0].Args[0] != "operate" {
			t.Errorf("the pod has %d mounts, and runs %v", len(mounts), pod.Spec.Containers[0].Args)
		}
		v.Image = ""
		if _, err := manifests.Render("operator-pod", v); err == nil {
			t.Error("no error without --image")
		}
	}
}
