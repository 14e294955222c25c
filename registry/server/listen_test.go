package server_test

import (
	"net"
	"strings"
	"testing"

	"trow/registry/server"
)

// TestAListenerThatCannotBeOpenedNamesTheRemedy: the setting of the port that is taken.
func TestAListenerThatCannotBeOpenedNamesTheRemedy(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for setting, o := range map[string]server.Options{
		"listen":       {Listen: taken.Addr().String()},
		"debug-listen": {Listen: "127.0.0.1:0", DebugListen: taken.Addr().String()},
		"probe-listen": {ProbeListen: taken.Addr().String()},
	} {
		if o.ProbeListen != "" {
			err = o.ServeProbes(t.Context())
		} else {
			_, _, err = o.OpenListeners()
		}
		want := "another process listens there: stop it, or set --" + setting + " to another port"
		if err == nil || !strings.HasPrefix(err.Error(), setting+": ") || !strings.HasSuffix(err.Error(), want) {
			t.Errorf("%s: %v", setting, err)
		}
	}
}
