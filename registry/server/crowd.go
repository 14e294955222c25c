package server

import (
	"container/heap"
	"container/list"
	"net"
	"net/netip"

	"trow/registry/address"
)

// crowd is a set of places or requests that can give way to new ones. Its first is the oldest member of the address
// that holds most, so that a client that takes more than the others loses its own. The zero value is empty. A crowd is
// not safe for concurrent use.
type crowd struct {
	groups map[netip.Addr]*group
	order  groupHeap
	next   uint64 // number of the next member
	n      int    // members
}

// group are the members of one address.
type group struct {
	address netip.Addr
	members list.List // of *member, the oldest first
	weight  int64     // of all members
	index   int       // in the heap
}

// member is one of a crowd.
type member struct {
	value  any
	weight int64
	number uint64 // members have increasing numbers
	group  *group
	at     *list.Element
}

// add adds a member that holds weight.
func (c *crowd) add(address netip.Addr, weight int64, value any) *member {
	if c.groups == nil {
		c.groups = map[netip.Addr]*group{}
	}
	g := c.groups[address]
	if g == nil {
		g = &group{address: address}
		c.groups[address] = g
		heap.Push(&c.order, g)
	}
	m := &member{value: value, weight: weight, number: c.next, group: g}
	c.next++
	c.n++
	m.at = g.members.PushBack(m)
	g.weight += weight
	heap.Fix(&c.order, g.index)
	return m
}

// remove removes a member, once.
func (c *crowd) remove(m *member) {
	g := m.group
	c.n--
	g.members.Remove(m.at)
	g.weight -= m.weight
	if g.members.Len() > 0 {
		heap.Fix(&c.order, g.index)
		return
	}
	heap.Remove(&c.order, g.index)
	delete(c.groups, g.address)
}

// first returns the oldest member of the address that holds most; nil if there is none.
func (c *crowd) first() *member {
	if len(c.order) == 0 {
		return nil
	}
	return c.order[0].oldest()
}

// of returns what an address holds.
func (c *crowd) of(address netip.Addr) int64 {
	if g := c.groups[address]; g != nil {
		return g.weight
	}
	return 0
}

func (g *group) oldest() *member { return g.members.Front().Value.(*member) }
func (g *group) newest() *member { return g.members.Back().Value.(*member) }

// groupHeap has the group with the most weight first; of equal ones, that with the oldest member.
type groupHeap []*group

func (h groupHeap) Len() int { return len(h) }
func (h groupHeap) Less(i, j int) bool {
	if h[i].weight != h[j].weight {
		return h[i].weight > h[j].weight
	}
	if h[i].members.Len() == 0 || h[j].members.Len() == 0 { // add pushes a group before its first member
		return false
	}
	return h[i].oldest().number < h[j].oldest().number
}

func (h groupHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *groupHeap) Push(x any) {
	g := x.(*group)
	g.index = len(*h)
	*h = append(*h, g)
}

func (h *groupHeap) Pop() any {
	last := len(*h) - 1
	g := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	return g
}

// addressOf returns the address that a connection counts for: an IPv4 address, or the /64 of an IPv6 address, because
// one client has all addresses of a /64 (RFC 6177).
func addressOf(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return address.Network(tcp.AddrPort().Addr())
}
