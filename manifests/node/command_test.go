package node_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"trow/manifests/node"
)

// command runs trow node.
func command(t *testing.T, in string, args ...string) (string, error) {
	var out bytes.Buffer
	cmd := node.Command()
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.SetIn(strings.NewReader(in))
	cmd.SetOut(&out)
	cmd.SetErr(&out)
	cmd.SetArgs(append([]string{}, args...)) // nil would mean os.Args
	err := cmd.ExecuteContext(t.Context())
	return out.String(), err
}

func TestTheCommandPrints(t *testing.T) {
	ca := makeAuthority(t).pem
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, []byte(ca), 0o600); err != nil {
		t.Fatal(err)
	}
	want := strings.Replace(snippet(t, "k3s", ca), "trow.kube-public:31000", "trow.images:31000", 1)
	for in, args := range map[string][]string{
		ca: {"--print=k3s", "--host=trow.images", "--ca=-"},
		"": {"--print=k3s", "--host=trow.images", "--ca=" + file},
	} {
		if out, err := command(t, in, args...); err != nil || out != want {
			t.Errorf("%v: %v, %s", args, err, out)
		}
	}
}

func TestTheCommandSaysWhatIsMissing(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for want, args := range map[string][]string{
		"kubectl -n kube-public get configmap trow-ca -o jsonpath='{.data.ca\\.crt}' | " +
			"trow node --print talos --ca -": {"--print=talos"},
		"ca: open /none":     {"--print=talos", "--ca=/none"},
		"ca: no certificate": {"--print=talos", "--ca=-"},
		"trow node --print":  nil, // outside a cluster
	} {
		if out, err := command(t, "", args...); err == nil || out != "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, %s", args, err, out)
		}
	}
}

// TestAPodOfAnEarlierManifestKeepsItsPort, which the probes of that manifest ask.
func TestAPodOfAnEarlierManifestKeepsItsPort(t *testing.T) {
	for want, o := range map[int]node.Options{
		31001: {Port: 31000}, 21000: {Port: 31000, LocalPort: 21000}, 30501: {Port: 30500}} {
		if got := node.LocalPortInPod(o); got != want {
			t.Errorf("port %d, local port %d: %d, want %d", o.Port, o.LocalPort, got, want)
		}
	}
}
