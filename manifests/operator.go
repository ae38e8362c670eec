package manifests

import (
	"errors"
	"strings"

	"github.com/hsm-kms/hsm-kms/internal/hint"
)

// OperateKubeconfig is where hsm-kms operate finds its identity.
func (v *Values) OperateKubeconfig() string { return "/etc/hsm-kms/operate.kubeconfig" }

// OperateState is the folder of hsm-kms operate, the default of --state-dir.
func (v *Values) OperateState() string { return "/var/lib/hsm-kms-operate" }

// Rule is a resource as a role names it.
type Rule struct{ Group, Resource string }

// Rules are Resources as a role names them. "*." is the core group, "*.*" everything.
func (v *Values) Rules() []Rule {
	var rules []Rule
	for _, entry := range v.Resources {
		resource, group, _ := strings.Cut(entry, ".")
		rules = append(rules, Rule{group, resource})
	}
	return rules
}

// OperateArgs are the flags of hsm-kms operate.
func (v *Values) OperateArgs() []string {
	return []string{"operate", "--config", v.ConfigPath, "--kubeconfig", v.OperateKubeconfig(), "--resources", strings.Join(v.Resources, ",")}
}

// OperateNamespaces have a Role of hsm-kms operate, and OperateRoles are its ClusterRoles.
func (v *Values) OperateNamespaces() []string { return []string{"hsm-kms", "kube-system", "default"} }

// OperateRoles are the ClusterRoles of hsm-kms operate.
func (v *Values) OperateRoles() []string {
	return []string{"hsm-kms-operate", "hsm-kms-operate-rewrite"}
}

// EtcdClient are the files with which hsm-kms operate reads etcd, where kubeadm has them.
func (v *Values) EtcdClient() []string {
	return []string{"/etc/kubernetes/pki/etcd/ca.crt", "/etc/kubernetes/pki/apiserver-etcd-client.crt", "/etc/kubernetes/pki/apiserver-etcd-client.key"}
}

// NotForOperate are files and folders that root may read and hsm-kms operate does not need: PINs, tokens, and what would make
// it an administrator of the cluster.
func (v *Values) NotForOperate() []string {
	paths := []string{
		v.StateDir, "/etc/kubernetes/admin.conf", "/etc/kubernetes/super-admin.conf", "/etc/kubernetes/pki/ca.key",
		"/etc/kubernetes/pki/sa.key", "/etc/kubernetes/pki/etcd/ca.key", "/etc/kubernetes/pki/front-proxy-ca.key",
	}
	for _, t := range v.withPIN() {
		paths = append(paths, t.File())
	}
	if v.SoftHSM() {
		paths = append(paths, "/var/lib/softhsm")
	}
	return paths
}

func (v *Values) checkOperator() error {
	if len(v.Resources) == 0 {
		return errors.New("--resources: name at least one, such as secrets")
	}
	return nil
}

func (v *Values) checkOperatorPod() error {
	if v.Image == "" {
		return hint.Wrap(errors.New("the image of the pod is not named"), "name the one of the plugin's pod with --image")
	}
	return v.checkOperator()
}
