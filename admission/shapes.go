package admission

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// maxUnjudged bounds the paths that a Document lists as not judged.
const maxUnjudged = 5

// shapes is what is found in an object of a kind that is not known: pod specs by their shape, and other images.
type shapes struct {
	containers []any // of all pod specs, with their images
	volumes    []any
	unjudged   []string // paths of fields that may name images and are in no pod spec
}

// findShapes searches an object for pod specs at any path: an object with a list containers or initContainers, of
// objects that have an image. Argo's Rollouts, Knative's Services, JobSets and many others have templates of that
// shape. The status and the metadata of an object are left out, and the members without.
func findShapes(v jsontext.Value, without ...string) *shapes {
	s := &shapes{}
	var o map[string]any
	if json.Unmarshal(v, &o) != nil { // the caller has decoded it before
		return s
	}
	for _, name := range slices.Sorted(maps.Keys(o)) {
		if name != "status" && name != "metadata" && !slices.Contains(without, name) {
			s.walk(name, name, o[name])
		}
	}
	return s
}

// walk searches a value. name is its member name, or that of the list that it is in; path is where it is.
func (s *shapes) walk(name, path string, v any) {
	switch v := v.(type) {
	case string:
		if namesImage(name) && !isOpen(v) {
			s.notJudged(path)
		}
	case []any:
		for i, element := range v {
			s.walk(name, path+"["+strconv.Itoa(i)+"]", element)
		}
	case map[string]any:
		if namesImage(name) && hasImageParts(v) {
			s.notJudged(path)
		}
		spec := isPodSpec(v)
		for _, name := range slices.Sorted(maps.Keys(v)) {
			if !spec || !s.take(name, v[name]) {
				s.walk(name, path+"."+name, v[name])
			}
		}
	}
}

func (s *shapes) notJudged(path string) {
	if len(s.unjudged) < maxUnjudged {
		s.unjudged = append(s.unjudged, path)
	}
}

// namesImage reports whether a member with this name may name images: image, images, baseImage, imageName (a Cluster of
// CloudNativePG), image_url.
func namesImage(name string) bool {
	name = strings.ReplaceAll(strings.ToLower(name), "_", "")
	for _, end := range []string{"image", "images", "imagename", "imageref", "imageurl"} {
		if strings.HasSuffix(name, end) {
			return true
		}
	}
	return false
}

// hasImageParts reports whether an object has the parts of an image's name, as the values of many Helm charts.
func hasImageParts(o map[string]any) bool {
	for _, part := range []string{"registry", "repository", "name", "reference", "tag", "digest"} {
		if text, _ := o[part].(string); text != "" {
			return true
		}
	}
	return false
}

// isPodSpec reports whether an object has the shape of a pod spec.
func isPodSpec(o map[string]any) bool {
	for _, name := range []string{"containers", "initContainers"} {
		containers, _ := o[name].([]any)
		if slices.ContainsFunc(containers, func(c any) bool {
			container, _ := c.(map[string]any)
			_, ok := container["image"].(string)
			return ok
		}) {
			return true
		}
	}
	return false
}

// take keeps a member of a pod spec, and reports whether it is one with images.
func (s *shapes) take(name string, v any) bool {
	list, ok := v.([]any)
	switch {
	case !ok:
		return false
	case name == "containers", name == "initContainers", name == "ephemeralContainers":
		s.containers = append(s.containers, list...)
	case name == "volumes":
		s.volumes = append(s.volumes, list...)
	default:
		return false
	}
	return true
}

// template returns a PodTemplate with the images of all pod specs that were found, or nil without any.
func (s *shapes) template() jsontext.Value {
	if len(s.containers) == 0 {
		return nil
	}
	text, err := json.Marshal(map[string]any{"template": map[string]any{"spec": map[string]any{
		"containers": s.containers, "volumes": s.volumes,
	}}})
	if err != nil { // these values come from a decoder
		return nil
	}
	return text
}

// isBuiltIn reports whether the kinds of an API group come from Kubernetes itself, all of whose images are known.
// Groups of its projects end in .x-k8s.io, and are not.
func isBuiltIn(group string) bool {
	return !strings.Contains(group, ".") || strings.HasSuffix(group, ".k8s.io")
}
