package settings

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"go.yaml.in/yaml/v3"
)

// checkYAML reports what viper would ignore, or take for something else: invariant 1. Errors: more than one document,
// of which it reads the first; something else than settings; a key that is there twice, written differently, of which
// it uses any. What is not YAML is left to viper, so that there is one error for it.
func checkYAML(content string) error {
	d := yaml.NewDecoder(strings.NewReader(content))
	for first := true; ; first = false {
		var document yaml.Node
		err := d.Decode(&document)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && first:
			return nil
		case err != nil:
			return err
		}
		root := document.Content[0]
		switch empty := root.Kind == yaml.ScalarNode && root.Tag == "!!null"; {
		case empty:
		case !first:
			return fmt.Errorf("line %d: more than one YAML document; put all settings into the first, without ---",
				root.Line)
		case root.Kind != yaml.MappingNode:
			return fmt.Errorf("line %d: not settings; want lines of the form key: value", root.Line)
		}
		if err := checkKeys(root); err != nil {
			return err
		}
	}
}

// checkKeys reports a key that a mapping has twice, because the case of letters does not count.
func checkKeys(n *yaml.Node) error {
	keys := map[string]int{}
	for i, child := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 {
			key := strings.ToLower(child.Value)
			if line, ok := keys[key]; ok {
				return fmt.Errorf("line %d: %s is set in line %d already; keep one", child.Line, key, line)
			}
			keys[key] = child.Line
		}
		if err := checkKeys(child); err != nil {
			return err
		}
	}
	return nil
}
