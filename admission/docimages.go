package admission

import "slices"

// Images returns the images that the pods of the object would have, each once, in their order. Errors: the object is
// not as its kind says.
func (d *Document) Images() (images []string, err error) {
	if d.Review == nil {
		return nil, nil
	}
	r := d.Review.Request
	k := kinds[groupKind{r.Kind.Group, r.Kind.Kind}]
	o, err := decodeObject(k, "object", r.Object.Raw)
	if err != nil || o == nil {
		return nil, err
	}
	for _, image := range k.images(o) {
		if image != "" && !slices.Contains(images, image) {
			images = append(images, image)
		}
	}
	return images, nil
}
