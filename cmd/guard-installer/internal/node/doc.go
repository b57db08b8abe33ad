// Package node brings a node to what a roll-out requests, or back to what it was.
//
// An installer observes the node, takes the next step of the table in steps.go, and observes
// it again, until a step has something to report. The steps of a change, and what a crash at
// each point leaves:
//
//  1. Preflight: nothing is written. What does not fit is a refusal.
//  2. Prepare: the programs and the configuration are put next to what is in use, under
//     names made of their checksums, and so are three units of systemd. One of them
//     rolls a change back; it is started once, before there is a change, and does what a
//     rollback needs. A crash leaves files that nothing uses.
//  3. The journal gets an entry with the previous drop-in, which is written next to its
//     place, too, and the timer is started that rolls the change back unless it is
//     confirmed. From here on a crash ends with the old kubelet: by the timer, by the
//     unit that runs when the node boots, or by the installer that is started next, which
//     may also bring it to a good end.
//  4. Under the lock of the journal, and only while the entry is this change and is being
//     switched, the drop-in is renamed into its place, or removed. systemd reads it and
//     restarts the kubelet.
//  5. Verify until everything was healthy for a while. Then the journal is confirmed
//     and the timer stopped; or the change is rolled back at once. What a guard holds by
//     then, the previous kubelet would stop: such a change is kept in place, also by
//     the timer.
//
// One installer works on a node: it has a lock for its life. What systemd, the runtime,
// the guard or the disk does not report is unknown (package answer), and decides nothing.
// The API server is queried by the steps that need it only, so that one that is away makes
// no node unready that is done.
//
// The kubelet that is being changed is the one that runs the installer: when it is
// broken nobody restarts the installer or probes it, and when it is wrong it may kill
// the installer. So nothing that rolls a change back depends on the installer's
// container.
package node
