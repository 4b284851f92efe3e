// Package hosttest owns a host in memory, for tests: what the packages beside it do on a real one, joined as it is
// there. A domain has a QEMU with a process ID and a cgroup, a console and taps; a container has a process, a cgroup and
// a network namespace; disks have an image below them. Its parts have the methods and the errors of the real ones, and
// the same tests prove that of both: TestLibvirt, TestStore, TestRuntime and TestVolumes.
//
// What happens on a host without Berth's doing, such as the end of a QEMU that libvirt has not noticed yet, are methods of
// Host. They tell whether it could happen. Nothing happens by itself, and nothing sleeps. The world's part in a guest's
// shutdown is the test's, too: a guest that was asked to power off runs until PowerOff.
//
// It never touches the machine that it runs on, but for opening /dev/null where a caller wants a file, and for the copies of
// guests' disks, which are files in a directory of the test's: CopiesIn.
package hosttest
