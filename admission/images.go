package admission

import (
	"iter"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
)

// object is what is decoded of a pod, or of a workload with a template for pods.
type object struct {
	Metadata metadata
	Pod      podSpec // or that of the template
}

type metadata struct {
	Name         string
	GenerateName string
	Deleted      bool // it has a deletionTimestamp
	Mirror       bool // it has the annotation that the kubelet sets on mirror pods

	// Controlled reports whether one of the owners of an object is a controller, which made it. Warnings about such
	// objects reach no user. Nothing else may depend on it, because any user can write an owner reference.
	Controlled bool
}

func (m *metadata) read(dec *jsontext.Decoder) error {
	return members(dec, func(name []byte) (err error) {
		switch string(name) {
		case "name":
			m.Name, err = text(dec)
		case "generateName":
			m.GenerateName, err = text(dec)
		case "deletionTimestamp":
			m.Deleted = dec.PeekKind() != 'n'
			_, err = textBytes(dec)
		case "annotations":
			err = members(dec, func(name []byte) error {
				if string(name) != "kubernetes.io/config.mirror" {
					return skip(dec)
				}
				m.Mirror = true // null is the empty string
				_, err := textBytes(dec)
				return err
			})
		case "ownerReferences":
			err = elements(dec, func() error { return m.readOwner(dec) })
		default: // managedFields is often most of an object
			err = skip(dec)
		}
		return err
	})
}

func (m *metadata) readOwner(dec *jsontext.Decoder) error {
	return members(dec, func(name []byte) error {
		if string(name) != "controller" {
			return skip(dec)
		}
		controller, err := boolean(dec)
		m.Controlled = m.Controlled || controller
		return err
	})
}

// podSpec has the images of a pod.
type podSpec struct {
	Containers          []string
	InitContainers      []string
	EphemeralContainers []string
	Volumes             []imageVolume
}

// imageVolume is a volume whose content comes from an image (KEP-4639).
type imageVolume struct {
	index     int // among all volumes
	reference string
}

func (s *podSpec) read(dec *jsontext.Decoder) error {
	return members(dec, func(name []byte) (err error) {
		switch string(name) {
		case "containers":
			s.Containers, err = readContainers(dec)
		case "initContainers":
			s.InitContainers, err = readContainers(dec)
		case "ephemeralContainers":
			s.EphemeralContainers, err = readContainers(dec)
		case "volumes":
			err = s.readVolumes(dec)
		default:
			err = skip(dec)
		}
		return err
	})
}

// readContainers returns the images of a list of containers, one for each container.
func readContainers(dec *jsontext.Decoder) (images []string, err error) {
	err = elements(dec, func() error {
		image := ""
		err := members(dec, func(name []byte) (err error) {
			if string(name) != "image" {
				return skip(dec)
			}
			image, err = text(dec)
			return err
		})
		images = appended(images, image)
		return err
	})
	return images, err
}

func (s *podSpec) readVolumes(dec *jsontext.Decoder) error {
	n := 0
	return elements(dec, func() error {
		v := imageVolume{index: n}
		n++
		return members(dec, func(name []byte) error {
			if string(name) != "image" || dec.PeekKind() == 'n' {
				return skip(dec)
			}
			err := members(dec, func(name []byte) (err error) {
				if string(name) != "reference" {
					return skip(dec)
				}
				v.reference, err = text(dec)
				return err
			})
			s.Volumes = appended(s.Volumes, v)
			return err
		})
	})
}

// appended is append, which alone would allocate five times the size of a long list in all.
func appended[T any](list []T, element T) []T {
	if len(list) == cap(list) {
		list = slices.Grow(list, max(len(list), 4))
	}
	return append(list, element)
}

// kind describes where an object of a kind has its images.
type kind struct {
	resource string
	at       string   // path of the pod spec
	path     []string // the same as member names
	template bool     // pods are made from it
}

// kinds are the kinds whose images are checked. All others are allowed.
var kinds = map[groupKind]kind{
	{"", "Pod"}:                   kindOf("pods", "spec"),
	{"", "PodTemplate"}:           kindOf("podtemplates", "template.spec"),
	{"", "ReplicationController"}: kindOf("replicationcontrollers", "spec.template.spec"),
	{"apps", "Deployment"}:        kindOf("deployments", "spec.template.spec"),
	{"apps", "ReplicaSet"}:        kindOf("replicasets", "spec.template.spec"),
	{"apps", "StatefulSet"}:       kindOf("statefulsets", "spec.template.spec"),
	{"apps", "DaemonSet"}:         kindOf("daemonsets", "spec.template.spec"),
	{"batch", "Job"}:              kindOf("jobs", "spec.template.spec"),
	{"batch", "CronJob"}:          kindOf("cronjobs", "spec.jobTemplate.spec.template.spec"),
}

func kindOf(resource, at string) kind {
	return kind{resource, at, strings.Split(at, "."), resource != "pods"}
}

// read decodes an object of the kind; nil for null.
func (k kind) read(dec *jsontext.Decoder) (*object, error) {
	if dec.PeekKind() == 'n' {
		return nil, skip(dec)
	}
	o := new(object)
	return o, o.read(dec, k.path)
}

// read decodes an object whose pod spec is at path.
func (o *object) read(dec *jsontext.Decoder, path []string) error {
	return members(dec, func(name []byte) error {
		switch {
		case string(name) == "metadata":
			return o.Metadata.read(dec)
		case string(name) == path[0]:
			return o.Pod.readAt(dec, path[1:])
		}
		return skip(dec)
	})
}

// readMetadata decodes the metadata alone, of an object of any kind.
func (o *object) readMetadata(dec *jsontext.Decoder) error {
	return members(dec, func(name []byte) error {
		if string(name) != "metadata" {
			return skip(dec)
		}
		return o.Metadata.read(dec)
	})
}

// readAt decodes the pod spec at path below the value that is next.
func (s *podSpec) readAt(dec *jsontext.Decoder, path []string) error {
	if len(path) == 0 {
		return s.read(dec)
	}
	return members(dec, func(name []byte) error {
		if string(name) != path[0] {
			return skip(dec)
		}
		return s.readAt(dec, path[1:])
	})
}

// place is where a pod spec has an image.
type place struct {
	list  string
	index int
	leaf  string
}

// field returns the path of the image in an object of the kind, as in spec.containers[0].image.
func (k kind) field(p place) string {
	return k.at + "." + p.list + "[" + strconv.Itoa(p.index) + "]." + p.leaf
}

// images yields every image of an object, with its place. A template may leave an image open, to be filled in when the
// pod is created; such images are left out.
func (k kind) images(o *object) iter.Seq2[place, string] {
	return func(yield func(place, string) bool) {
		for p, image := range o.Pod.images() {
			if k.template && isOpen(image) {
				continue
			}
			if !yield(p, image) {
				return
			}
		}
	}
}

// isOpen reports whether an image of a template stands for one that is not known yet. Istio writes auto.
func isOpen(image string) bool {
	image = strings.TrimSpace(image)
	return image == "" || image == "auto"
}

func (s *podSpec) images() iter.Seq2[place, string] {
	return func(yield func(place, string) bool) {
		for _, l := range [...]struct {
			name string
			list []string
		}{
			{"containers", s.Containers},
			{"initContainers", s.InitContainers},
			{"ephemeralContainers", s.EphemeralContainers},
		} {
			for i, image := range l.list {
				if !yield(place{l.name, i, "image"}, image) {
					return
				}
			}
		}
		for _, v := range s.Volumes {
			if !yield(place{"volumes", v.index, "image.reference"}, v.reference) {
				return
			}
		}
	}
}
