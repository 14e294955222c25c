package admission

import (
	"iter"
	"strconv"
	"strings"
)

// object is what is read of a pod and of every kind of workload: their union, of which kind says what counts.
type object struct {
	Metadata metadata
	Spec     spec
	Template podTemplate // of a PodTemplate
}

type metadata struct {
	Name         string
	GenerateName string
	Deleting     bool // it has a deletionTimestamp
	Mirror       bool // it has the annotation of mirror pods
	// Controlled: a controller made it; nobody reads warnings about those. Anybody can write an owner reference, so nothing
	// else may depend on it.
	Controlled bool
}

type spec struct {
	podSpec                 // of a Pod
	Template    podTemplate // of most workloads
	JobTemplate podTemplate // of a CronJob: its spec.template
}

type podTemplate struct {
	Spec podSpec
}

type podSpec struct {
	Containers          []container
	InitContainers      []container
	EphemeralContainers []container
	Volumes             []volume
}

type container struct {
	Image string
}

// volume is a volume of a pod. One with an image is mounted from it (KEP-4639).
type volume struct {
	Image *string // its reference
}

func (o *object) read(s *scanner) {
	for ok := s.object(); ok; ok = s.next() {
		switch string(s.name) {
		case "metadata":
			o.Metadata.read(s)
		case "spec":
			o.Spec.read(s)
		case "template":
			o.Template.read(s)
		default:
			s.skip()
		}
	}
}

func (m *metadata) read(s *scanner) {
	for ok := s.object(); ok; ok = s.next() {
		switch string(s.name) {
		case "name":
			m.Name = s.string()
		case "generateName":
			m.GenerateName = s.string()
		case "deletionTimestamp":
			if !s.null() {
				s.string()
				m.Deleting = true
			}
		case "annotations":
			if s.find("kubernetes.io/config.mirror") {
				s.string() // null, too, is there
				m.Mirror = true
				s.rest()
			}
		case "ownerReferences":
			for ok := s.array(); ok; ok = s.next() {
				if s.find("controller") {
					m.Controlled = s.bool() || m.Controlled
					s.rest()
				}
			}
		default:
			s.skip()
		}
	}
}

func (p *spec) read(s *scanner) {
	for ok := s.object(); ok; ok = s.next() {
		switch string(s.name) {
		case "template":
			p.Template.read(s)
		case "jobTemplate":
			if s.find("spec") {
				if s.find("template") {
					p.JobTemplate.read(s)
					s.rest()
				}
				s.rest()
			}
		default:
			p.podSpec.readMember(s)
		}
	}
}

func (t *podTemplate) read(s *scanner) {
	if s.find("spec") {
		t.Spec.read(s)
		s.rest()
	}
}

func (p *podSpec) read(s *scanner) {
	for ok := s.object(); ok; ok = s.next() {
		p.readMember(s)
	}
}

// readMember reads the value of a member of a pod's spec.
func (p *podSpec) readMember(s *scanner) {
	switch string(s.name) {
	case "containers":
		p.Containers = list(s, (*container).read)
	case "initContainers":
		p.InitContainers = list(s, (*container).read)
	case "ephemeralContainers":
		p.EphemeralContainers = list(s, (*container).read)
	case "volumes":
		p.Volumes = list(s, (*volume).read)
	default:
		s.skip()
	}
}

func (c *container) read(s *scanner) {
	if s.find("image") {
		c.Image = s.string()
		s.rest()
	}
}

func (v *volume) read(s *scanner) {
	if !s.find("image") {
		return
	}
	if !s.null() {
		v.Image = new(string)
		if s.find("reference") {
			*v.Image = s.string()
			s.rest()
		}
	}
	s.rest()
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
func specOfCronJob(o *object) *podSpec     { return &o.Spec.JobTemplate.Spec }
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
			if v.Image != nil && !yield(place{"volumes", i, "image.reference"}, *v.Image) {
				return
			}
		}
	}
}
