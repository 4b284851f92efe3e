package libvirtd

import "sync"

// eventMonitor tells when events have stopped flowing. It needs no event of its own, which would have to change some domain:
// every list of domains is compared with the one before, and whatever differs must have had an event. An event that is late
// is waited for until the next ping.
type eventMonitor struct {
	mu          sync.Mutex
	known       map[string]int32 // libvirt's ID of each domain in the last list; nil before the first
	noted       map[string]bool  // had an event since that list was begun
	unannounced map[string]int   // changed without an event, and how often missed was called since
}

// reset forgets all, for a new connection.
func (c *eventMonitor) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.known, c.noted, c.unannounced = nil, map[string]bool{}, map[string]int{}
}

// note takes note of an event.
func (c *eventMonitor) note(uuid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.noted[uuid] = true
	delete(c.unannounced, uuid)
}

// beginList is called before domains are listed, and returns those with an event since the last list. Events that come
// while libvirtd lists count for both lists.
func (c *eventMonitor) beginList() map[string]bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	noted := c.noted
	c.noted = map[string]bool{}
	return noted
}

// endList compares a list, the domains now, with the one before.
func (c *eventMonitor) endList(noted map[string]bool, now map[string]int32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.known
	c.known = now
	if before == nil {
		return
	}
	for _, list := range []map[string]int32{before, now} {
		for uuid := range list {
			old, was := before[uuid]
			id, is := now[uuid]
			if (was != is || old != id) && !noted[uuid] && !c.noted[uuid] {
				c.unannounced[uuid] = 0
			}
		}
	}
}

// missed returns a domain that changed without an event, or "". It returns one
// at its second call only: the first may come right after the list.
func (c *eventMonitor) missed() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	for uuid, asked := range c.unannounced {
		if asked > 0 {
			return uuid
		}
		c.unannounced[uuid]++
	}
	return ""
}
