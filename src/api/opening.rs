//! How often clients open sessions.
//!
//! The replicated state remembers a bounded number of sessions, and the one that is least recently used makes room for
//! another ([`crate::kv::SessionBounds`]). A client needs one and keeps it. One that opens them without end would have
//! everybody else's forgotten, whose next write is then *session unknown*. So what a connection opens is rationed, and
//! what all connections of a node open is: who uses a session every ten seconds keeps it whatever others do.
//!
//! Left out: whose sessions they are. A client that stays away for long may find its session forgotten, as before.

pub use super::ration::Ration;
use std::sync::{Mutex, PoisonError};

/// Sessions that one connection opens at once: many more than a client needs.
pub const CONNECTION_BURST: u64 = 64;
/// And every second from then on: one needs a quarter of an hour to fill the table.
const CONNECTION_PER_SECOND: u64 = 4;
/// Sessions that all connections of a node open at once: as many clients as start together.
const NODE_BURST: u64 = 1024;
/// And every second from then on.
const NODE_PER_SECOND: u64 = 256;

impl Ration {
    /// That of one connection.
    #[must_use]
    pub fn of_connection() -> Ration {
        Ration::new(CONNECTION_BURST, CONNECTION_PER_SECOND)
    }
}

/// The ration of a node.
#[derive(Debug)]
pub struct Opening(Mutex<Ration>);

impl Default for Opening {
    fn default() -> Opening {
        Opening(Mutex::new(Ration::new(NODE_BURST, NODE_PER_SECOND)))
    }
}

impl Opening {
    /// Whether a connection may open a session now.
    ///
    /// # Errors
    /// What its client is told when it may not.
    pub fn take(&self, connection: &mut Ration, now_us: u64) -> Result<(), String> {
        if !connection.take(now_us) {
            return Err(format!(
                "busy: one connection opens {CONNECTION_BURST} sessions at once and {CONNECTION_PER_SECOND} a second \
                 from then on; a client needs one, and keeps it: use that, or try again later"
            ));
        }
        if !self.0.lock().unwrap_or_else(PoisonError::into_inner).take(now_us) {
            return Err(format!(
                "busy: the clients of a node open {NODE_BURST} sessions at once and {NODE_PER_SECOND} a second from \
                 then on; try again later, or at another node"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::SessionBounds;

    /// One client opens sessions without end, and comes with a new connection when it gets no more. It fills no table of
    /// sessions within seconds; who opens one now and then is not concerned.
    #[test]
    fn no_client_opens_sessions_without_end() {
        let node = Opening::default();
        let mut one = Ration::of_connection();
        let opened = (0..1000).filter(|_| node.take(&mut one, 5).is_ok()).count();
        assert_eq!(opened as u64, CONNECTION_BURST);
        let told = node.take(&mut one, 6).unwrap_err();
        assert!(told.starts_with("busy: one connection opens 64 sessions at once"), "{told}");
        assert!(node.take(&mut Ration::of_connection(), 6).is_ok(), "another one");
        assert!(node.take(&mut one, 250_006).is_ok(), "a quarter of a second later");
        assert!(node.take(&mut one, 250_007).is_err());
        // With as many connections as it likes.
        let mut all = 0;
        for ms in 1000..11_000 {
            all += (0..10)
                .filter(|_| node.take(&mut Ration::of_connection(), ms * 1000).is_ok())
                .count();
        }
        assert!(all < SessionBounds::STANDARD.sessions, "{all} sessions in ten seconds");
        let told = node.take(&mut Ration::of_connection(), 10_999_000).unwrap_err();
        assert!(told.contains("1024 sessions at once and 256 a second"), "{told}");
    }
}
