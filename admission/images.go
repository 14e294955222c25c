package admission

import (
	"iter"
	"strconv"
	"strings"
)

// object is what is read of a pod and of every kind of workload: their union, of which kind says what counts.
type object struct {
	Metadata metadata    `json:"metadata"`
	Spec     spec        `json:"spec"`
	Template podTemplate `json:"template"` // of a PodTemplate
}

type metadata struct {
	Name              string  `json:"name"`
	GenerateName      string  `json:"generateName"`
	DeletionTimestamp *string `json:"deletionTimestamp"`
	Annotations       struct {
		Mirror *string `json:"kubernetes.io/config.mirror"`
	} `json:"annotations"`
	OwnerReferences []struct {
		Controller bool `json:"controller"`
	} `json:"ownerReferences"`
}

type spec struct {
	podSpec                 // of a Pod
	Template    podTemplate `json:"template"` // of most workloads
	JobTemplate struct {
		Spec struct {
			Template podTemplate `json:"template"`
		} `json:"spec"`
	} `json:"jobTemplate"` // of a CronJob
}

type podTemplate struct {
	Spec podSpec `json:"spec"`
}

type podSpec struct {
	Containers          []container `json:"containers"`
	InitContainers      []container `json:"initContainers"`
	EphemeralContainers []container `json:"ephemeralContainers"`
	Volumes             []volume    `json:"volumes"`
}

type container struct {
	Image string `json:"image"`
}

// volume is a volume of a pod. One with an image is mounted from it (KEP-4639).
type volume struct {
	Image *struct {
		Reference string `json:"reference"`
	} `json:"image"`
}

// kind says where an object of a kind has its images.
type kind struct {
	resource string
	at       string // path of the pod spec
	spec     func(*object) *podSpec
	template bool // pods are made from it
}

func specOfPod(o *object) *podSpec         { return &o.Spec.podSpec }
func specOfWorkload(o *object) *podSpec    { return &o.Spec.Template.Spec }
func specOfCronJob(o *object) *podSpec     { return &o.Spec.JobTemplate.Spec.Template.Spec }
func specOfPodTemplate(o *object) *podSpec { return &o.Template.Spec }

// kinds has the kinds that are judged. All others pass.
var kinds = map[groupKind]kind{
	{"", "Pod"}:                   {"pods", "spec", specOfPod, false},
	{"", "PodTemplate"}:           {"podtemplates", "template.spec", specOfPodTemplate, true},
	{"", "ReplicationController"}: {"replicationcontrollers", "spec.template.spec", specOfWorkload, true},
	{"apps", "Deployment"}:        {"deployments", "spec.template.spec", specOfWorkload, true},
	{"apps", "ReplicaSet"}:        {"replicasets", "spec.template.spec", specOfWorkload, true},
	{"apps", "StatefulSet"}:       {"statefulsets", "spec.template.spec", specOfWorkload, true},
	{"apps", "DaemonSet"}:         {"daemonsets", "spec.template.spec", specOfWorkload, true},
	{"batch", "Job"}:              {"jobs", "spec.template.spec", specOfWorkload, true},
	{"batch", "CronJob"}:          {"cronjobs", "spec.jobTemplate.spec.template.spec", specOfCronJob, true},
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

// images lists every image of an object, with its place. In a template an image may be left open, for
// somebody else to fill in when the pod is made; those are left out.
func (k kind) images(o *object) iter.Seq2[place, string] {
	return func(yield func(place, string) bool) {
		for p, image := range k.spec(o).images() {
			if k.template && isOpen(image) {
				continue
			}
			if !yield(p, image) {
				return
			}
		}
	}
}

// isOpen tells whether an image of a template stands for one that is not known yet. Istio writes auto.
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

// controlled tells whether a controller made the object. Nobody reads warnings about those. Anybody can
// write an owner reference, so nothing else may depend on it.
func (m *metadata) controlled() bool {
	for _, r := range m.OwnerReferences {
		if r.Controller {
			return true
		}
	}
	return false
}
