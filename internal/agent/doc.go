// Package agent is the loop that joins thought and hands on one node: it
// observes one guest, has the plan decide, does the steps and reports.
//
// Its only memory is the machine itself: whatever it keeps besides (connections,
// hints) can be lost at any line.
package agent
