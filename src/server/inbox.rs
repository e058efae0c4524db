//! The raft loop's [`Inbox`] between threads: a lock around it, and the bell that wakes the loop.

use super::{ClientHandle, lock};
use crate::node::{INPUTS_MAX, Inbox, Input, WakeInterest};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

type Event = Input<ClientHandle>;

/// What the sending side shares.
#[derive(Debug)]
pub(crate) struct RaftInbox {
    inbox: Mutex<Inbox<ClientHandle>>,
    bell: Condvar,
    ended: Arc<AtomicBool>,
}

/// What the raft loop keeps: as long as it does, it takes what comes.
#[derive(Debug)]
pub(crate) struct RaftEvents {
    taken: Vec<Event>,
    ended: Arc<AtomicBool>,
}

/// The raft loop has ended, and takes nothing any more.
#[derive(Debug)]
pub(crate) struct LoopEnded;

pub(crate) fn raft_inbox() -> (RaftInbox, RaftEvents) {
    let ended: Arc<AtomicBool> = Arc::default();
    let events = RaftEvents { taken: Vec::new(), ended: Arc::clone(&ended) };
    (RaftInbox { inbox: Mutex::default(), bell: Condvar::new(), ended }, events)
}

impl RaftInbox {
    /// Queues an input, and wakes the loop if it is to be woken for that.
    pub(crate) fn send(&self, event: Event) -> Result<(), LoopEnded> {
        if self.ended.load(Ordering::Acquire) {
            return Err(LoopEnded);
        }
        let wakes = lock(&self.inbox).push(event);
        if wakes {
            self.bell.notify_one();
        }
        Ok(())
    }
}

impl RaftEvents {
    /// Waits for something of `interest` or that always wakes, at most so long, and hands all there
    /// is to `handle`.
    pub(crate) fn wait(
        &mut self,
        inbox: &RaftInbox,
        interest: WakeInterest,
        wait: Duration,
        handle: impl FnMut(Event),
    ) {
        let mut locked = lock(&inbox.inbox);
        if locked.sleep(interest) {
            let woken = inbox.bell.wait_timeout_while(locked, wait, |inbox| inbox.is_asleep());
            locked = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        locked.take(INPUTS_MAX, &mut self.taken);
        drop(locked);
        self.taken.drain(..).for_each(handle);
    }
}

impl Drop for RaftEvents {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::super::mailbox::Mailbox;
    use super::*;
    use crate::node::Request;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread;

    /// A wait in which nothing comes for so long means that a wake-up was lost.
    const LOST: Duration = Duration::from_secs(60);
    /// Requests of each kind that a stress test is to see.
    const REQUESTS: u64 = 2_000;

    fn requests(number: u64, what: Request) -> Event {
        let client = ClientHandle(Mailbox::new(&crate::api::budget::Budget::new(0, 0)));
        Input::Client { client, requests: vec![(number, 0, what)] }
    }

    /// A client that submits one request after another, each when the one before was taken, for as
    /// long as the loop runs.
    fn client(inbox: &Arc<RaftInbox>, what: &Request) -> SyncSender<()> {
        let (taken, answers): (SyncSender<()>, Receiver<()>) = sync_channel(1);
        let (inbox, what) = (Arc::clone(inbox), what.clone());
        thread::spawn(move || {
            while inbox.send(requests(0, what.clone())).is_ok() {
                if answers.recv().is_err() {
                    return;
                }
            }
        });
        taken
    }

    /// Runs the loop's side until it took so many writes and reads. It sleeps whenever it may, and never
    /// through what it wants.
    fn run(interest: WakeInterest) {
        let (inbox, mut events) = raft_inbox();
        let inbox = Arc::new(inbox);
        let writer = client(&inbox, &Request::Write(Arc::from([])));
        let reader = client(&inbox, &Request::Read);
        let (mut writes, mut reads) = (0, 0);
        while writes < REQUESTS || reads < REQUESTS {
            let before = writes + reads;
            events.wait(&inbox, interest, LOST, |input| match input {
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
            assert!(writes + reads > before, "a wake-up was lost behind {writes} and {reads}");
        }
    }

    /// The loop sleeps whenever it has nothing to do, and two clients submit as fast as they are
    /// answered, each waking it only when that is wanted. It never sleeps through a request.
    #[test]
    fn no_wake_up_is_lost() {
        run(WakeInterest { writes: true, reads: true, applied: true });
    }

    /// The loop does not want to be woken for reads. They wait for the next write and are taken
    /// with it, so that a request that wakes nobody is not forgotten.
    #[test]
    fn what_is_not_wanted_is_taken_at_the_next_wake() {
        run(WakeInterest { writes: true, ..WakeInterest::default() });
    }

    /// The applier reports index after index; the loop hears of the last of them, always, and of
    /// none twice.
    #[test]
    fn the_last_news_of_the_applier_is_heard() {
        let (inbox, mut events) = raft_inbox();
        let inbox = Arc::new(inbox);
        let theirs = Arc::clone(&inbox);
        let last = 200_000;
        let applier = thread::spawn(move || {
            (1..=last).for_each(|index| theirs.send(Input::Applied { index, flushed: 0 }).unwrap());
        });
        let interest = WakeInterest { applied: true, ..WakeInterest::default() };
        let mut heard = 0;
        while heard < last {
            let before = heard;
            events.wait(&inbox, interest, LOST, |input| match input {
                Input::Applied { index, .. } => {
                    assert!(index > heard);
                    heard = index;
                }
                other => panic!("{other:?}"),
            });
            assert!(heard > before, "a wake-up was lost behind {heard}");
        }
        applier.join().unwrap();
    }

    /// The loop has ended: whoever sends is told so.
    #[test]
    fn nothing_is_sent_to_a_loop_that_has_ended() {
        let (inbox, events) = raft_inbox();
        assert!(inbox.send(requests(0, Request::Read)).is_ok());
        drop(events);
        assert!(inbox.send(requests(1, Request::Read)).is_err());
    }
}
