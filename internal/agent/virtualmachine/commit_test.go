package virtualmachine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-dev/berth/api/v1alpha1"
	"github.com/berth-dev/berth/internal/fault"
	"github.com/berth-dev/berth/internal/guest/domain"
	"github.com/berth-dev/berth/internal/host/libvirtd"
	"github.com/berth-dev/berth/internal/host/store"
)

func TestARunningGuestsDiskIsCommitted(t *testing.T) {
	inBubble(t, running, func(c *committing) {
		uid := string(vmUID)
		c.connect(c.n.host.FreezingAgent(uid))
		c.pushes = func(_ context.Context, sent func(bytes, of int64)) error {
			sent(3<<20, 9<<20)
			time.Sleep(2 * progressPeriod)
			return nil
		}
		p := c.porter(nil)
		b := c.copying(uid)
		if !b.Frozen {
			t.Error("the guest writes on when its backup begins")
		}
		if c.n.host.Frozen(uid) {
			t.Error("the guest holds its writes until its backup ends")
		}
		c.n.host.AdvanceBackup(uid, 5<<20, 7<<20)
		c.pass()
		c.pass()
		if p.exit != nil || len(c.pushed) > 0 {
			t.Error("what is not copied yet is pushed")
		}
		taken := time.Now()
		c.n.host.CompleteBackup(uid)
		if made := c.made(p); !*made.Quiesced || !made.TakenAt.Time.Before(taken) {
			t.Errorf("it tells %+v, and the copy was complete at %v", made, taken)
		}
		log := ""
		for text, ended := p.read(t); !ended; text, ended = p.read(t) {
			log += text
		}
		for _, want := range []string{"copying the disk, 5 of 7 MiB", "pushing, 3 of 9 MiB"} {
			if !strings.Contains(log, "committing disk root to registry.example.org/shop/web:1: "+want+"\r\n") {
				t.Errorf("the porter's log does not tell %q:\n%s", want, log)
			}
		}
		c.clean()
		if q := c.n.qemu(t); q.State != libvirtd.Running {
			t.Errorf("the guest is %+v", q)
		}
	})
}

func TestAGuestIsQuiescedIfItCanBe(t *testing.T) {
	uid := string(vmUID)
	for name, tt := range map[string]struct {
		quiesce v1alpha1.Quiesce
		agent   func(*committing) func(string) (string, error)
		is      bool
		fails   bool
		asked   bool
	}{
		"if possible, by its agent":         {v1alpha1.QuiesceIfPossible, (*committing).freezing, true, false, true},
		"if possible, without agent":        {v1alpha1.QuiesceIfPossible, nil, false, false, false},
		"if possible, agent refuses":        {v1alpha1.QuiesceIfPossible, (*committing).refusing, false, false, true},
		"if possible, nothing to freeze":    {v1alpha1.QuiesceIfPossible, (*committing).empty, false, false, true},
		"it has to be, and is":              {v1alpha1.QuiesceRequired, (*committing).freezing, true, false, true},
		"it has to be, without agent":       {v1alpha1.QuiesceRequired, nil, false, true, false},
		"it has to be, agent refuses":       {v1alpha1.QuiesceRequired, (*committing).refusing, false, true, true},
		"it is not to be":                   {v1alpha1.QuiesceNever, (*committing).freezing, false, false, false},
		"it is not to be, and has no agent": {v1alpha1.QuiesceNever, nil, false, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, running, func(c *committing) {
				if tt.agent != nil {
					c.connect(tt.agent(c))
				}
				for range 2 { // what the first leaves does not keep the next from it
					c.asked = nil
					p := c.porter(quiesce(tt.quiesce))
					if tt.fails {
						c.failed(p, v1alpha1.ReasonNotQuiesced, "the guest did not hold its writes")
					} else {
						if b := c.copying(uid); b.Frozen != tt.is {
							t.Errorf("its writes are held: %t", b.Frozen)
						}
						c.n.host.CompleteBackup(uid)
						if made := c.made(p); *made.Quiesced != tt.is {
							t.Errorf("it tells %+v", made)
						}
					}
					c.clean()
					if (len(c.asked) > 0) != tt.asked {
						t.Errorf("its agent was asked %v", c.asked)
					}
				}
			})
		})
	}
}

// TestAnAgentThatDoesNotAnswerInTime may have understood: the guest is let go on all the same.
func TestAnAgentThatDoesNotAnswerInTime(t *testing.T) {
	uid := string(vmUID)
	for _, q := range []v1alpha1.Quiesce{v1alpha1.QuiesceIfPossible, v1alpha1.QuiesceRequired} {
		t.Run(string(q), func(t *testing.T) {
			inBubble(t, running, func(c *committing) {
				c.slow(func(command string) bool { return !strings.Contains(command, "freeze-freeze") })
				p := c.porter(quiesce(q))
				if q == v1alpha1.QuiesceRequired {
					c.failed(p, v1alpha1.ReasonNotQuiesced, "the guest did not hold its writes")
				} else {
					c.copying(uid)
					if c.n.host.Frozen(uid) {
						t.Error("it holds its writes on")
					}
					c.n.host.CompleteBackup(uid)
					if made := c.made(p); *made.Quiesced {
						t.Errorf("it tells %+v", made)
					}
				}
				c.clean()
			})
		})
	}
}

// TestAGuestThatIsNotLetGoOn is asked to until it does.
func TestAGuestThatIsNotLetGoOn(t *testing.T) {
	inBubble(t, running, func(c *committing) {
		uid, listens := string(vmUID), false
		c.slow(func(command string) bool { return listens || !strings.Contains(command, "freeze-thaw") })
		p := c.porter(nil)
		c.until("a porter that tells so", func() bool { return p.exit != nil })
		if !c.n.host.Frozen(uid) || p.exit.Code != 1 {
			t.Fatalf("the guest is frozen: %t, the porter ended with %+v", c.n.host.Frozen(uid), p.exit)
		}
		listens = true
		c.failed(p, v1alpha1.ReasonGuestAgentNotConnected, "guest-fsfreeze-thaw")
		c.clean() // the porter's end has had the guest looked at

		listens = false
		p = c.porter(nil)
		c.failed(p, v1alpha1.ReasonGuestAgentNotConnected, "guest-fsfreeze-thaw")
		p = c.porter(quiesce(v1alpha1.QuiesceNever))
		c.copying(uid) // what is left of the last one is in nobody's way
		c.n.host.CompleteBackup(uid)
		c.made(p)
		listens = true
		c.look(vmUID) // at the next resync
		c.clean()
	})
}

func TestAStoppedGuestsDiskIsCommitted(t *testing.T) {
	inBubble(t, stopped, func(c *committing) {
		w, uid, reader := c.n.world, string(vmUID), readerOf(vmUID)
		w.cluster.vm.Spec.Disks[0].Limits = nil
		taken := make(chan struct{})
		c.pushes = func(context.Context, func(bytes, of int64)) error { <-taken; return nil }
		p := c.porter(quiesce(v1alpha1.QuiesceRequired))
		b := c.copying(reader)
		if !strings.HasSuffix(b.Disk, uid+"/root.qcow2") {
			t.Errorf("it copies %s", b.Disk)
		}
		all := c.n.host.QEMUs(reader)
		if len(all) != 1 || all[0].State != libvirtd.Paused || all[0].Container != p.ContainerID() {
			t.Fatalf("the readers are %+v", all)
		}
		d, err := c.n.host.Libvirt.Domain(t.Context(), reader)
		if err != nil {
			t.Fatal(err)
		}
		if facts, err := domain.ParseFacts(d.XML); err != nil || len(facts.Disks) != 1 || facts.Disks[0].Name != "root" || strings.Contains(d.XML, "<interface") || strings.Contains(d.XML, "/seeds/") {
			t.Errorf("the reader has %+v, %v:\n%s", facts.Disks, err, d.XML)
		}
		c.n.agent.ResyncAll() // and finds the reader, which is nobody's guest
		c.pass()

		w.cluster.vm.Spec.State = v1alpha1.StateRunning
		w.operate(c.n.name)
		w.operate(c.n.name)
		c.n.runContainer()
		for range 3 {
			c.n.sync()
			c.pass()
		}
		c.n.expect(t, v1alpha1.ConditionDisksReady, v1alpha1.ReasonCommitting)
		if q := c.n.host.QEMUs(uid); len(q) > 0 {
			t.Errorf("the guest is started: %+v", q)
		}
		c.n.host.CompleteBackup(reader)
		c.until("the guest's start", func() bool { return len(c.n.host.QEMUs(uid)) > 0 })
		c.n.sync()
		c.n.expect(t, v1alpha1.ConditionRunning, v1alpha1.ReasonStarted)
		if len(c.n.host.QEMUs(reader)) > 0 || p.exit != nil {
			t.Errorf("its start has waited for the push, or the reader not ended: %+v", c.n.host.QEMUs(reader))
		}
		close(taken)
		if made := c.made(p); !*made.Quiesced {
			t.Errorf("it tells %+v", made)
		}
		c.clean()
		c.n.agent.ResyncAll() // which finds the reader's sockets
		c.pass()
		if c.n.host.Consoles.Exists(reader) {
			t.Error("its sockets are left")
		}
	})
}

func TestThereIsNothingToCommit(t *testing.T) {
	cdrom := func(vm *v1alpha1.VirtualMachine) {
		vm.Spec.Disks = append(vm.Spec.Disks, v1alpha1.Disk{Name: "install", Type: v1alpha1.DiskTypeCDROM, Image: "registry/install:1"})
	}
	add := func(c *committing) {
		c.n.world.cluster.vm.Spec.Disks = append(c.n.world.cluster.vm.Spec.Disks, v1alpha1.Disk{Name: "data", Image: "registry/web:1"})
		c.n.cache = c.n.world.cluster.copy()
	}
	for name, tt := range map[string]struct {
		world  func(*testing.T, ...func(*v1alpha1.VirtualMachine)) (*world, *node)
		change func(*v1alpha1.VirtualMachine)
		before func(*committing)
		disk   string
		says   string
	}{
		"the VirtualMachine is gone": {stopped, nil, func(c *committing) { c.n.world.cluster.vm, c.n.cache.vm = nil, nil }, "root", "does not exist any more"},
		"it has no such disk":        {running, nil, nil, "data", "has no disk data"},
		"the disk is a CD-ROM":       {running, cdrom, nil, "install", "it is a CD-ROM"},
		"it was not made yet":        {one, nil, func(c *committing) { c.n.cache = c.n.world.cluster.copy() }, "root", "start the guest"},
		"it is a stopped guest's claim": {one, onClaim(corev1.PersistentVolumeFilesystem), func(c *committing) {
			c.n.cache = c.n.world.cluster.copy()
		}, "data", "start the guest"},
		"a running guest has not got it": {running, nil, add, "data", "is not on node"},
		"a running guest has not got it, but it is made": {running, nil, func(c *committing) {
			add(c)
			if _, err := c.n.host.Store.Overlay(string(vmUID), store.Overlay{Name: "data", Size: 1 << 30}); err != nil {
				c.t.Fatal(err)
			}
		}, "data", "does not have disk data yet"},
	} {
		t.Run(name, func(t *testing.T) {
			change := tt.change
			if change == nil {
				change = func(*v1alpha1.VirtualMachine) {}
			}
			inBubble(t, tt.world, func(c *committing) {
				if tt.before != nil {
					tt.before(c)
				}
				c.failed(c.porter(diskOf(tt.disk)), v1alpha1.ReasonNothingToCommit, tt.says)
				c.clean()
			}, change)
		})
	}
}

func TestACommitFails(t *testing.T) {
	uid, reader := string(vmUID), readerOf(vmUID)
	copied := func(id string) func(*committing) {
		return func(c *committing) { c.copying(id); c.n.host.CompleteBackup(id) }
	}
	refuses := func(c *committing) {
		c.pushes = func(context.Context, func(bytes, of int64)) error {
			return fault.NewTransient(v1alpha1.ReasonPushFailed, errors.New("507 Insufficient Storage"))
		}
	}
	full := func(c *committing) { c.n.host.LimitCopies(1<<30 - 1) }
	for name, tt := range map[string]struct {
		world        func(*testing.T, ...func(*v1alpha1.VirtualMachine)) (*world, *node)
		before, amid func(*committing)
		reason       v1alpha1.Reason
		says         string
	}{
		"the store is full":                     {running, full, nil, v1alpha1.ReasonStoreFull, ""},
		"the store is full, of a stopped guest": {stopped, full, nil, v1alpha1.ReasonStoreFull, ""},
		"QEMU gives up": {running, nil, func(c *committing) {
			c.copying(uid)
			c.n.host.FailBackup(uid, "no space left")
		}, v1alpha1.ReasonStoreFailed, "no space left"},
		"the reader gives up": {stopped, nil, func(c *committing) {
			c.copying(reader)
			c.n.host.FailBackup(reader, "no space left")
		}, v1alpha1.ReasonStoreFailed, "no space left"},
		"the reader is killed": {stopped, nil, func(c *committing) {
			c.copying(reader)
			c.n.host.KillQEMU(reader)
			c.n.host.NoticeExit(reader)
		}, v1alpha1.ReasonNotRunning, ""},
		"the guest ends": {running, nil, func(c *committing) {
			c.copying(uid)
			c.n.host.PowerOff(uid)
		}, v1alpha1.ReasonNotRunning, ""},
		"the push fails":                      {running, refuses, copied(uid), v1alpha1.ReasonPushFailed, "507 Insufficient Storage"},
		"the push of a stopped guest's fails": {stopped, refuses, copied(reader), v1alpha1.ReasonPushFailed, "507 Insufficient Storage"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, tt.world, func(c *committing) {
				if c.n.host.ConnectAgent(uid, nil) {
					c.connect(c.freezing())
				}
				if tt.before != nil {
					tt.before(c)
				}
				p := c.porter(nil)
				if tt.amid != nil {
					tt.amid(c)
				}
				c.failed(p, tt.reason, tt.says)
				c.clean()
			})
		})
	}
}

// TestCommitsAreMadeInTurn, few at once.
func TestCommitsAreMadeInTurn(t *testing.T) {
	inBubble(t, running, func(c *committing) {
		for range maxStarts {
			if !c.n.agent.making.begin("another", "another") {
				t.Fatal("there are fewer slots")
			}
		}
		p := c.porter(nil)
		c.until("it to wait", func() bool {
			made, _ := c.n.agent.commits.Load(vmUID)
			return made != nil && strings.Contains(made.(*commit).state.Load().Progress, "4 slots for commits")
		})
		if c.n.host.HasCopy(string(vmUID)) {
			t.Error("it takes space meanwhile")
		}
		c.n.agent.making.end("another")
		c.copying(string(vmUID))
		c.n.host.CompleteBackup(string(vmUID))
		c.made(p)
		c.clean()
	})
}

// TestLibvirtdGoesAmidACommit, which begins anew with it.
func TestLibvirtdGoesAmidACommit(t *testing.T) {
	inBubble(t, running, func(c *committing) {
		uid := string(vmUID)
		p := c.porter(nil)
		c.copying(uid)
		c.n.host.SetLibvirtDown(true)
		c.pass()
		if !c.n.host.HasCopy(uid) {
			t.Error("the copy is removed, and QEMU may still write it")
		}
		c.n.host.SetLibvirtDown(false)
		c.pass()
		c.copying(uid)
		c.n.host.CompleteBackup(uid)
		c.made(p)
		c.clean()
	})
}

// TestAPorterIsDeleted amid its commit: that is given up, and the next one's begins.
func TestAPorterIsDeleted(t *testing.T) {
	for name, tt := range map[string]struct {
		world func(*testing.T, ...func(*v1alpha1.VirtualMachine)) (*world, *node)
		id    string
		force bool
	}{
		"of a running guest": {running, string(vmUID), false}, "of a stopped guest": {stopped, readerOf(vmUID), false},
		"by force": {running, string(vmUID), true},
	} {
		for _, pushing := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, it is pushing: %t", name, pushing), func(t *testing.T) {
				inBubble(t, tt.world, func(c *committing) {
					if c.n.host.ConnectAgent(string(vmUID), nil) {
						c.connect(c.freezing())
					}
					c.pushes = func(ctx context.Context, _ func(bytes, of int64)) error { <-ctx.Done(); return ctx.Err() }
					p := c.porter(nil)
					c.copying(tt.id)
					if pushing {
						c.n.host.CompleteBackup(tt.id)
						c.pass()
						c.pass()
					}
					if !c.n.host.HasCopy(string(vmUID)) {
						t.Error("there is no copy")
					}
					if tt.force {
						c.delete(p)
					} else {
						p.pod.DeletionTimestamp = &metav1.Time{Time: time.Now()}
						c.look(p.pod.UID)
						synctest.Wait()
					}
					c.clean()
					c.pushes = nil
					next := c.porter(nil)
					c.copying(tt.id)
					c.n.host.CompleteBackup(tt.id)
					c.made(next)
					c.clean()
					if p.exit != nil || len(c.pushed) != 1 {
						t.Errorf("the one that was deleted ended with %+v, and %d images were pushed", p.exit, len(c.pushed))
					}
				})
			})
		}
	}
}

// TestAVMIsDeletedWhileItsDiskIsRead: the QEMU that reads it does not stay.
func TestAVMIsDeletedWhileItsDiskIsRead(t *testing.T) {
	for _, deleted := range []string{"the porter", "nothing else"} {
		t.Run(deleted, func(t *testing.T) {
			inBubble(t, stopped, func(c *committing) {
				p := c.porter(nil)
				c.copying(readerOf(vmUID))
				c.n.world.cluster.vm.DeletionTimestamp = &metav1.Time{Time: time.Now()}
				c.n.sync()
				if deleted == "the porter" {
					c.delete(p)
				} else {
					c.n.host.CompleteBackup(readerOf(vmUID))
					c.until("the porter's end", func() bool { return p.exit != nil })
					c.finish(p)
				}
				c.n.sync()
				c.clean()
				if has, err := c.n.host.Store.Has(string(vmUID)); has || err != nil {
					t.Errorf("its directory is left: %t, %v", has, err)
				}
			})
		})
	}
}

func TestCommitsOfOneVMWaitForEachOther(t *testing.T) {
	inBubble(t, running, func(c *committing) {
		uid := string(vmUID)
		first := c.porter(nil)
		b := c.copying(uid)
		second := c.porter(nil)
		for range 3 {
			c.pass()
		}
		if now, goesOn := c.n.host.Backup(uid); !goesOn || now != b || second.exit != nil {
			t.Errorf("the first one's backup is %+v, was %+v; the second ended with %+v", now, b, second.exit)
		}
		if text, _ := second.read(t); !strings.Contains(text, "another commit of the VirtualMachine goes on") {
			t.Errorf("the second one's log has %q", text)
		}
		c.n.host.CompleteBackup(uid)
		c.made(first)
		c.copying(uid)
		c.n.host.CompleteBackup(uid)
		c.made(second)
		if len(c.pushed) != 2 {
			t.Errorf("%d images were pushed", len(c.pushed))
		}
		c.clean()
	})
}

// TestAnAgentIsKilledAmidACommit, before anything that it asks of the host: the next one cleans up, and has the commit done
// anew if its porter is still there.
func TestAnAgentIsKilledAmidACommit(t *testing.T) {
	for name, tt := range map[string]struct {
		world func(*testing.T, ...func(*v1alpha1.VirtualMachine)) (*world, *node)
		id    string
	}{
		"of a running guest": {running, string(vmUID)}, "of a stopped guest": {stopped, readerOf(vmUID)},
	} {
		for _, stays := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, its porter stays: %t", name, stays), func(t *testing.T) {
				steps, copies, frozen := 0, 0, 0
				for killed := true; killed; steps++ {
					inBubble(t, tt.world, func(c *committing) {
						if c.n.host.ConnectAgent(string(vmUID), nil) {
							c.connect(c.freezing())
						}
						left := steps
						killed = false
						c.touch = func() {
							if left--; left < 0 {
								killed = true
								runtime.Goexit()
							}
						}
						p := c.porter(nil)
						for range 10 {
							time.Sleep(backupPoll)
							synctest.Wait()
							c.n.host.CompleteBackup(tt.id)
						}
						if c.n.host.HasCopy(string(vmUID)) {
							copies++
						}
						if c.n.host.Frozen(string(vmUID)) {
							frozen++
						}
						c.pushed = nil
						c.anotherAgent()
						if stays {
							c.look(p.pod.UID)
							synctest.Wait()
							c.copying(tt.id)
							c.n.host.CompleteBackup(tt.id)
							if made := c.made(p); !*made.Quiesced {
								t.Errorf("it tells %+v", made)
							}
						} else {
							c.delete(p)
							c.n.sync()
						}
						c.clean()
						if t.Failed() {
							t.Fatalf("when it was killed before its step %d", steps)
						}
					})
				}
				if copies == 0 || steps < 10 || frozen == 0 && tt.id == string(vmUID) {
					t.Errorf("of %d steps %d left a copy, and %d a frozen guest", steps, copies, frozen)
				}
			})
		}
	}
}
