package cluster

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// dockerfile returns the configuration of the image that the Dockerfile of the repository makes: that of its last
// stage, without files. Errors: an instruction or a form of one that this function does not know, so that the image
// under test never differs from the one that users build.
func dockerfile() (Image, error) {
	root, err := Root()
	if err != nil {
		return Image{}, err
	}
	b, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		return Image{}, err
	}
	return parseDockerfile(string(b))
}

// parseDockerfile is dockerfile for this text.
func parseDockerfile(text string) (Image, error) {
	var img Image
	base := ""
	for line := range strings.Lines(strings.ReplaceAll(text, "\\\n", " ")) {
		instruction, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		rest = strings.TrimSpace(rest)
		var err error
		switch strings.ToUpper(instruction) {
		case "FROM":
			base, img = rest, Image{}
		case "ENV":
			for pair := range strings.FieldsSeq(rest) {
				if key, value, ok := strings.Cut(pair, "="); !ok || key == "" || strings.ContainsAny(value, `"'\$`) {
					err = fmt.Errorf("ENV %s: want KEY=VALUE, without quotes and variables", pair)
				}
				img.Env = append(img.Env, pair)
			}
		case "USER":
			img.User = rest
		case "EXPOSE":
			for port := range strings.FieldsSeq(rest) {
				img.Ports = append(img.Ports, port+"/tcp")
			}
		case "VOLUME":
			img.Volumes = append(img.Volumes, strings.Fields(rest)...)
		case "ENTRYPOINT":
			err = json.Unmarshal([]byte(rest), &img.Entrypoint)
		case "CMD":
			err = json.Unmarshal([]byte(rest), &img.Cmd)
		case "", "COPY", "RUN", "ARG", "WORKDIR": // files: those of the last stage are in trowImage
		default:
			if !strings.HasPrefix(instruction, "#") {
				err = fmt.Errorf("%s: unknown instruction", instruction)
			}
		}
		if err != nil {
			return Image{}, fmt.Errorf("the Dockerfile: %s: %w", strings.TrimSpace(line), err)
		}
	}
	if base != "scratch" { // the image would have the configuration of its base as well
		return Image{}, fmt.Errorf("the Dockerfile: the last stage is FROM %q; want scratch", base)
	}
	return img, nil
}
