package admission

import (
	"iter"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// object is what is decoded of a pod, or of a workload with a template for pods.
type object struct {
	Metadata metadata
	Pod      podSpec // or that of the template
}

type metadata struct {
	Name         string  `json:"name"`
	GenerateName string  `json:"generateName"`
	Deleted      *string `json:"deletionTimestamp"`
	Annotations  struct {
		Mirror present `json:"kubernetes.io/config.mirror"` // the kubelet sets it on mirror pods
	} `json:"annotations"`
	Controlled    controlled `json:"ownerReferences"`
	ManagedFields skipped    `json:"managedFields"`
}

// skipped is a member that is often most of an object and has no images. The library skips unknown members token by
// token; ReadValue takes half the time.
type skipped struct{}

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (*skipped) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	_, err := dec.ReadValue()
	return err
}

// present reports whether there is a member whose value is a string. null is the empty string.
type present bool

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (p *present) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	*p = true
	var text string
	return json.UnmarshalDecode(dec, &text)
}

// controlled reports whether one of the owners of an object is a controller, which made it. Warnings about such
// objects reach no user. Nothing else may depend on it, because any user can write an owner reference.
type controlled bool

// UnmarshalJSONFrom implements json.UnmarshalerFrom.
func (c *controlled) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	type owner struct {
		Controller bool `json:"controller"`
	}
	*c = false
	return elements(dec, func(o owner) { *c = *c || controlled(o.Controller) })
}

// The shapes of the kinds. They differ in where the spec of the pods is.
type (
	pod struct {
		Metadata metadata `json:"metadata"`
		Spec     podSpec  `json:"spec"`
		Status   skipped  `json:"status"`
	}
	podTemplate struct {
		Metadata metadata `json:"metadata"`
		Template template `json:"template"`
	}
	workload struct {
		Metadata metadata `json:"metadata"`
		Spec     struct {
			Template template `json:"template"`
		} `json:"spec"`
	}
	cronJob struct {
		Metadata metadata `json:"metadata"`
		Spec     struct {
			JobTemplate struct {
				Spec struct {
					Template template `json:"template"`
				} `json:"spec"`
			} `json:"jobTemplate"`
		} `json:"spec"`
	}
	template struct {
		Spec podSpec `json:"spec"`
	}
)

func (o *pod) object() *object         { return &object{o.Metadata, o.Spec} }
func (o *podTemplate) object() *object { return &object{o.Metadata, o.Template.Spec} }
func (o *workload) object() *object    { return &object{o.Metadata, o.Spec.Template.Spec} }
func (o *cronJob) object() *object     { return &object{o.Metadata, o.Spec.JobTemplate.Spec.Template.Spec} }

type podSpec struct {
	Containers          list[container] `json:"containers"`
	InitContainers      list[container] `json:"initContainers"`
	EphemeralContainers list[container] `json:"ephemeralContainers"`
	Volumes             list[volume]    `json:"volumes"`
}

type container struct {
	Image string `json:"image"`
}

// volume is a volume of a pod. The content of a volume with an image comes from that image (KEP-4639).
type volume struct {
	Image *struct {
		Reference string `json:"reference"`
	} `json:"image"`
}

// kind describes where an object of a kind has its images.
type kind struct {
	resource string
	at       string // path of the pod spec
	decode   func(text []byte, o json.Options) (*object, error)
	template bool // pods are made from it
}

// kinds are the kinds whose images are checked. All others are allowed.
var kinds = map[groupKind]kind{
	{"", "Pod"}:                   {"pods", "spec", decodeAs[pod], false},
	{"", "PodTemplate"}:           {"podtemplates", "template.spec", decodeAs[podTemplate], true},
	{"", "ReplicationController"}: {"replicationcontrollers", "spec.template.spec", decodeAs[workload], true},
	{"apps", "Deployment"}:        {"deployments", "spec.template.spec", decodeAs[workload], true},
	{"apps", "ReplicaSet"}:        {"replicasets", "spec.template.spec", decodeAs[workload], true},
	{"apps", "StatefulSet"}:       {"statefulsets", "spec.template.spec", decodeAs[workload], true},
	{"apps", "DaemonSet"}:         {"daemonsets", "spec.template.spec", decodeAs[workload], true},
	{"batch", "Job"}:              {"jobs", "spec.template.spec", decodeAs[workload], true},
	{"batch", "CronJob"}:          {"cronjobs", "spec.jobTemplate.spec.template.spec", decodeAs[cronJob], true},
}

// decodeAs decodes an object of a shape; nil for null.
func decodeAs[T any, P interface {
	*T
	object() *object
}](text []byte, o json.Options) (*object, error) {
	var shape P
	if err := json.Unmarshal(text, &shape, o); err != nil || shape == nil {
		return nil, err
	}
	return shape.object(), nil
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
			list []container
		}{
			{"containers", s.Containers},
			{"initContainers", s.InitContainers},
			{"ephemeralContainers", s.EphemeralContainers},
		} {
			for i, c := range l.list {
				if !yield(place{l.name, i, "image"}, c.Image) {
					return
				}
			}
		}
		for i, v := range s.Volumes {
			if v.Image != nil && !yield(place{"volumes", i, "image.reference"}, v.Image.Reference) {
				return
			}
		}
	}
}
