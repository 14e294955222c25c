package kube

import "testing"

func TestCommandsRunInThePodOrInOneOfTheDeployment(t *testing.T) {
	for host, want := range map[string]string{"trow-0": "trow-0", "trow-6d5f7c9b8-x2k4q": "deploy/trow",
		"machine": "trow-0", "": "trow-0"} {
		if got := podOf(host); got != want {
			t.Errorf("%q: %s, want %s", host, got, want)
		}
	}
}
