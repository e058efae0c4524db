//! Signs of life on the connections that this node has dialed: docs/protocol.md, "Ping and Pong".
//!
//! A peer that vanishes without a word (power, cable, a firewall that forgets) closes nothing, and
//! what is written to it disappears into buffers for minutes. So the dialing side asks, and the other
//! side counts on being asked. Any byte that arrives is life: on a slow link an answer may take long
//! behind large frames, and the other side answers while they arrive.
//!
//! Left out: reading and writing, which the owner of the connection does. It reports what has arrived
//! before it asks [`Keepalive::poll`], so that a process that was stopped for a minute finds the
//! answers that wait for it and not a silent peer; and before [`Keepalive::hasten`], so that an answer
//! of before the doubt does not dispel it.

/// Time between two pings, in microseconds.
pub const PING_EVERY_US: u64 = 1_000_000;
/// A peer that has sent no byte for so long, while it owes an answer, is gone. In microseconds.
pub const PONG_PATIENCE_US: u64 = 3_000_000;
/// A dialed node on which nothing arrives for so long takes the dialer for gone. In microseconds.
pub const SILENCE_MAX_US: u64 = 5_000_000;
/// After a hastened ping a silent peer is dialed anew, beside the old connection, this soon: well
/// within an election timeout, and longer than a round trip to another continent. In microseconds.
pub const HASTENED_PATIENCE_US: u64 = 200_000;

// One late ping or pong is no evidence, and the side that can tell more closes first.
const _: () = assert!(2 * PING_EVERY_US < PONG_PATIENCE_US && PONG_PATIENCE_US < SILENCE_MAX_US);

/// What [`Keepalive::poll`] finds due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// Nothing.
    Nothing,
    /// A ping is to be written.
    Ping,
    /// A hastened ping was not answered: another connection is to be tried, this one stays.
    Silent,
    /// The peer is gone, silent for so many microseconds: the connection is to be closed.
    Dead(u64),
}

/// The dialing side's account of one connection.
#[derive(Clone, Debug)]
pub struct Keepalive {
    next_ping_us: u64,
    /// When the oldest ping was written that is not answered, or a byte last arrived since. Counted
    /// from there and not from the last pong: a pause of this process is not the peer's silence.
    owed_since_us: Option<u64>,
    /// When a hastened ping is given up.
    hastened_us: Option<u64>,
}

impl Keepalive {
    /// A connection was made.
    pub fn new(now_us: u64) -> Keepalive {
        Keepalive { next_ping_us: now_us, owed_since_us: None, hastened_us: None }
    }

    /// When [`Keepalive::poll`] may find something.
    pub fn next_us(&self) -> u64 {
        self.hastened_us.map_or(self.next_ping_us, |at| at.min(self.next_ping_us))
    }

    /// Bytes arrived. `answered`: a pong was among them.
    pub fn heard(&mut self, answered: bool, now_us: u64) {
        self.hastened_us = None;
        self.owed_since_us = if answered { None } else { self.owed_since_us.map(|_| now_us) };
    }

    /// There is reason to doubt the connection: asks at once.
    pub fn hasten(&mut self, now_us: u64) {
        self.next_ping_us = now_us;
        self.hastened_us.get_or_insert(now_us + HASTENED_PATIENCE_US);
    }

    /// What is to be done now.
    pub fn poll(&mut self, now_us: u64) -> Due {
        let silent_us = self.owed_since_us.map_or(0, |at| now_us.saturating_sub(at));
        if silent_us >= PONG_PATIENCE_US {
            return Due::Dead(silent_us);
        }
        if now_us >= self.next_ping_us {
            self.owed_since_us.get_or_insert(now_us);
            self.next_ping_us = now_us + PING_EVERY_US;
            return Due::Ping;
        }
        if self.hastened_us.is_some_and(|at| now_us >= at) {
            self.hastened_us = None;
            return Due::Silent;
        }
        Due::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Polls once a second for `seconds`; `heard` says whether something arrives after that, and
    /// whether it is a pong. Gives the second in which the connection was given up.
    fn run(seconds: u64, heard: impl Fn(u64) -> Option<bool>) -> Option<u64> {
        let mut keepalive = Keepalive::new(0);
        for second in 0..seconds {
            match keepalive.poll(second * SECOND) {
                Due::Dead(_) => return Some(second),
                due => assert_eq!(due, Due::Ping),
            }
            assert_eq!(keepalive.next_us(), (second + 1) * SECOND);
            if let Some(answered) = heard(second) {
                keepalive.heard(answered, second * SECOND + 1);
            }
        }
        None
    }

    /// The peer swallows everything, as if its machine had lost power; or it answers and dies later.
    #[test]
    fn a_silent_peer_is_given_up_after_its_patience() {
        assert_eq!(run(10, |_| None), Some(3));
        assert_eq!(run(60, |second| (second < 20).then_some(true)), Some(23));
    }

    /// A peer that answers every other second is slow, not gone; nor is one behind a slow link, whose
    /// answer waits behind a large frame while other bytes arrive.
    #[test]
    fn a_peer_from_which_bytes_arrive_is_kept() {
        assert_eq!(run(60, |second| (second % 2 == 1).then_some(true)), None);
        assert_eq!(run(60, |second| (second % 2 == 1).then_some(false)), None);
    }

    /// This process was stopped for a minute behind a pong. The peer owes nothing: it is asked.
    #[test]
    fn a_pause_of_this_process_is_not_the_peers_silence() {
        let mut keepalive = Keepalive::new(0);
        assert_eq!(keepalive.poll(0), Due::Ping);
        keepalive.heard(true, 60 * SECOND);
        assert_eq!(keepalive.poll(60 * SECOND), Due::Ping);
        assert_eq!(keepalive.poll(63 * SECOND), Due::Dead(3 * SECOND));
    }

    /// In doubt it asks at once, once, and another connection is tried when no byte comes; the old one
    /// is not given up for that.
    #[test]
    fn a_doubtful_connection_is_tried_at_once() {
        let mut keepalive = Keepalive::new(0);
        assert_eq!(keepalive.poll(0), Due::Ping);
        keepalive.heard(true, 1_000);
        keepalive.hasten(300_000);
        assert_eq!(keepalive.poll(300_000), Due::Ping);
        keepalive.hasten(400_000);
        assert_eq!(keepalive.poll(400_000), Due::Ping);
        assert_eq!(keepalive.next_us(), 500_000);
        assert_eq!(keepalive.poll(500_000), Due::Silent);
        assert_eq!(keepalive.poll(500_001), Due::Nothing);
        keepalive.hasten(600_000);
        keepalive.heard(false, 700_000);
        assert_eq!(keepalive.poll(700_000), Due::Ping);
        assert_eq!(keepalive.poll(900_000), Due::Nothing);
    }
}
