package libvirtd

import "sync"

// canary tells when events have stopped flowing. It needs no event of its own,
// which would have to change some domain: every full look is compared with the
// one before, and whatever differs must have been heard of. An event that is
// late is waited for until the next ping.
type canary struct {
	mu       sync.Mutex
	known    map[string]int32 // libvirt's ID of each domain at the last look; nil before the first
	heard    map[string]bool  // of which events told since that look began
	suspects map[string]int   // which differed at a look without an event, and how often silent has been asked since
}

// reset forgets all, for a new connection.
func (c *canary) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known, c.heard, c.suspects = nil, map[string]bool{}, nil
}

// hear takes note of an event.
func (c *canary) hear(uuid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.heard == nil {
		c.heard = map[string]bool{}
	}
	c.heard[uuid] = true
	delete(c.suspects, uuid)
}

// begin starts a look and returns what was heard since the last one. Events that come while libvirtd lists count for both looks.
func (c *canary) begin() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard := c.heard
	c.heard = map[string]bool{}
	return heard
}

// compare ends a look that saw the domains now.
func (c *canary) compare(heard map[string]bool, now map[string]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.suspects == nil {
		c.suspects = map[string]int{}
	}
	suspect := func(uuid string) {
		if c.known != nil && !heard[uuid] && !c.heard[uuid] {
			c.suspects[uuid] = 0
		}
	}
	for uuid, id := range now {
		if before, ok := c.known[uuid]; !ok || before != id {
			suspect(uuid)
		}
	}
	for uuid := range c.known {
		if _, ok := now[uuid]; !ok {
			suspect(uuid)
		}
	}
	c.known = now
}

// silent returns a domain that changed without an event, or nothing. A domain
// is returned when it is asked for the second time: the first may come at once.
func (c *canary) silent() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uuid, asked := range c.suspects {
		if asked > 0 {
			return uuid
		}
		c.suspects[uuid]++
	}
	return ""
}
