//! The raft loop's inbox, which wakes it only when that helps.
//!
//! Waking a thread costs more than anything the raft loop does with one request. While a batch of
//! writes or a round of reads is under way a new request cannot be begun, and the loop is certain
//! to wake when the batch or the round is done: until then requests only queue up. The loop says
//! before it sleeps what is worth waking it for; whoever brings that takes the flag down and rings.
//!
//! No ring is lost: a request is queued before the flag is looked at, and the loop looks at the
//! queue again after it has put the flag up (both sequentially consistent).

use super::ClientHandle;
use crate::node::{Input, Wants};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, channel};
use std::time::Duration;

type Event = Input<ClientHandle>;

/// What the sending side shares.
#[derive(Debug)]
pub(crate) struct RaftInbox {
    /// Events that always wake; none is a mere ring.
    events: Sender<Option<Event>>,
    requests: Sender<Event>,
    applied: AtomicU64,
    flushed: AtomicU64,
    wants_writes: AtomicBool,
    wants_reads: AtomicBool,
    wants_applied: AtomicBool,
}

/// What the raft loop keeps.
#[derive(Debug)]
pub(crate) struct RaftEvents {
    events: Receiver<Option<Event>>,
    requests: Receiver<Event>,
    applied: u64,
}

/// Inputs taken before effects are looked at: keeps timers exact under load.
const INPUTS_MAX: usize = 4096;

pub(crate) fn raft_inbox() -> (RaftInbox, RaftEvents) {
    let (events, event_queue) = channel();
    let (requests, request_queue) = channel();
    let inbox = RaftInbox {
        events,
        requests,
        applied: AtomicU64::new(0),
        flushed: AtomicU64::new(0),
        wants_writes: AtomicBool::new(true),
        wants_reads: AtomicBool::new(true),
        wants_applied: AtomicBool::new(true),
    };
    (inbox, RaftEvents { events: event_queue, requests: request_queue, applied: 0 })
}

impl RaftInbox {
    /// Something happened that the loop must see at once. Fails when the loop has ended.
    pub(crate) fn send(&self, event: Event) -> Result<(), SendError<Option<Event>>> {
        self.events.send(Some(event))
    }

    /// Requests of a client, with writes or with reads among them.
    pub(crate) fn submit(
        &self,
        event: Event,
        writes: bool,
        reads: bool,
    ) -> Result<(), SendError<Event>> {
        self.requests.send(event)?;
        let ring = (writes && self.wants_writes.swap(false, Ordering::SeqCst))
            | (reads && self.wants_reads.swap(false, Ordering::SeqCst));
        if ring {
            // Fails only when the loop has ended, and then nobody needs to be woken.
            let _ = self.events.send(None);
        }
        Ok(())
    }

    /// Everything up to `index` is applied, and up to `flushed` durable in the store.
    pub(crate) fn applied(&self, index: u64, flushed: u64) {
        self.flushed.store(flushed, Ordering::SeqCst);
        self.applied.store(index, Ordering::SeqCst);
        if self.wants_applied.swap(false, Ordering::SeqCst) {
            let _ = self.events.send(None);
        }
    }

    fn want(&self, wants: Wants) {
        self.wants_writes.store(wants.writes, Ordering::SeqCst);
        self.wants_reads.store(wants.reads, Ordering::SeqCst);
        self.wants_applied.store(wants.applied, Ordering::SeqCst);
    }
}

impl RaftEvents {
    /// Waits for something that `wants` or that always wakes, at most so long, and hands all there
    /// is to `handle`. False when nobody is left who could send.
    pub(crate) fn wait(
        &mut self,
        inbox: &RaftInbox,
        wants: Wants,
        wait: Duration,
        mut handle: impl FnMut(Event),
    ) -> bool {
        inbox.want(wants);
        if !self.drain_quiet(inbox, &mut handle) {
            match self.events.recv_timeout(wait) {
                Ok(event) => event.into_iter().for_each(&mut handle),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        inbox.want(Wants::default());
        for _ in 0..INPUTS_MAX {
            let Ok(event) = self.events.try_recv() else { break };
            event.into_iter().for_each(&mut handle);
        }
        self.drain_quiet(inbox, &mut handle);
        true
    }

    /// Takes what may have come without a ring; whether there was anything.
    fn drain_quiet(&mut self, inbox: &RaftInbox, handle: &mut impl FnMut(Event)) -> bool {
        let mut any = false;
        let applied = inbox.applied.load(Ordering::SeqCst);
        if applied > self.applied {
            self.applied = applied;
            let flushed = inbox.flushed.load(Ordering::SeqCst);
            handle(Input::Applied { index: applied, flushed });
            any = true;
        }
        for _ in 0..INPUTS_MAX {
            let Ok(request) = self.requests.try_recv() else { break };
            handle(request);
            any = true;
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::super::mailbox::Mailbox;
    use super::*;
    use crate::node::Request;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread;
    use std::time::Instant;

    const STRESS: Duration = Duration::from_millis(600);
    /// A wait in which nothing comes for so long means that a ring was lost.
    const LOST: Duration = Duration::from_secs(5);

    fn requests(number: u64, what: Request) -> Event {
        let client = ClientHandle(Arc::new(Mailbox::default()));
        Input::Client { client, requests: vec![(number, 0, what)] }
    }

    /// A client that submits one request after another, each when the one before was taken, for as
    /// long as the loop runs.
    fn client(inbox: &Arc<RaftInbox>, what: &Request) -> SyncSender<()> {
        let (taken, answers): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        let (inbox, what) = (Arc::clone(inbox), what.clone());
        thread::spawn(move || {
            let write = matches!(what, Request::Write(_));
            while inbox.submit(requests(0, what.clone()), write, !write).is_ok() {
                if answers.recv().is_err() {
                    return;
                }
            }
        });
        taken
    }

    /// Runs the loop's side for a while; gives how many writes and reads it took.
    fn run(wants: impl Fn(u64) -> Wants) -> (u64, u64) {
        let (inbox, mut events) = raft_inbox();
        let inbox = Arc::new(inbox);
        let until = Instant::now() + STRESS;
        let writer = client(&inbox, &Request::Write(Arc::from([])));
        let reader = client(&inbox, &Request::Read);
        let (mut writes, mut reads, mut turns) = (0, 0, 0);
        while Instant::now() < until {
            let since = Instant::now();
            events.wait(&inbox, wants(turns), 2 * LOST, |input| match input {
                Input::Client { requests, .. } => match requests[0].2 {
                    Request::Write(_) => {
                        writes += 1;
                        let _ = writer.send(());
                    }
                    _ => {
                        reads += 1;
                        let _ = reader.send(());
                    }
                },
                other => panic!("{other:?}"),
            });
            assert!(since.elapsed() < LOST, "a ring was lost in turn {turns}");
            turns += 1;
        }
        (writes, reads)
    }

    /// The loop sleeps whenever it has nothing to do, and two clients submit as fast as they are
    /// answered, each ringing only when the loop wants it. It never sleeps through a request.
    #[test]
    fn no_ring_is_lost() {
        let all = Wants { writes: true, reads: true, applied: true };
        let (writes, reads) = run(|_| all);
        assert!(writes > 100 && reads > 100, "{writes} writes, {reads} reads");
    }

    /// The loop does not want to be woken for reads. They wait for the next write and are taken
    /// with it, so that a request that rings nobody is not forgotten.
    #[test]
    fn what_is_not_wanted_is_taken_at_the_next_wake() {
        let only_writes = Wants { writes: true, ..Wants::default() };
        let (writes, reads) = run(|_| only_writes);
        assert!(writes > 100 && reads > 100, "{writes} writes, {reads} reads");
    }

    /// The applier reports index after index; the loop hears of the last of them, always, and of
    /// none twice.
    #[test]
    fn the_last_news_of_the_applier_is_heard() {
        let (inbox, mut events) = raft_inbox();
        let inbox = Arc::new(inbox);
        let theirs = Arc::clone(&inbox);
        let last = 200_000;
        let applier = thread::spawn(move || (1..=last).for_each(|index| theirs.applied(index, 0)));
        let wants = Wants { applied: true, ..Wants::default() };
        let mut heard = 0;
        while heard < last {
            let since = Instant::now();
            events.wait(&inbox, wants, 2 * LOST, |input| match input {
                Input::Applied { index, .. } => {
                    assert!(index > heard);
                    heard = index;
                }
                other => panic!("{other:?}"),
            });
            assert!(since.elapsed() < LOST, "a ring was lost behind {heard}");
        }
        applier.join().unwrap();
    }

    /// More connections submit at once than are taken in one go: the rest is taken without a ring.
    #[test]
    fn a_crowd_is_taken_in_turns() {
        let (inbox, mut events) = raft_inbox();
        for number in 0..3 * INPUTS_MAX as u64 {
            inbox.submit(requests(number, Request::Read), false, true).unwrap();
        }
        let mut next = 0;
        while next < 3 * INPUTS_MAX as u64 {
            let before = next;
            events.wait(&inbox, Wants::default(), Duration::ZERO, |input| {
                let Input::Client { requests, .. } = input else { panic!("{input:?}") };
                assert_eq!(requests[0].0, next, "in their order");
                next += 1;
            });
            assert!(next > before);
        }
    }
}
