//! The sessions that a connection holds.
//!
//! The replicated state remembers a bounded number of sessions, and a place in it is kept for as long as a connection
//! holds the session ([`crate::kv::SessionBounds`]). A client needs one. So a connection holds few: those that it has
//! opened, and those that its writes name. When it ends they are released, each with how far the connection has come, so
//! that one which has gone on elsewhere stays held there.
//!
//! So who opens sessions without end, or comes with a new connection for each, takes nobody's place and keeps nobody
//! out: what it leaves is what makes room. To fill the table it has to hold hundreds of connections.
//!
//! Left out: releasing again what could not be, because the node knew no leader, say. Such a session counts as held, and
//! loses its place by its age.

use crate::kv::{Command, Outcome, SessionBounds};
use crate::wire::client::{Answer, Call, Failure};
use std::collections::BTreeMap;

/// Most sessions of a connection: several more than a client needs. 256 connections fill the table.
pub(super) const CONNECTION_SESSIONS_MAX: usize = 16;

const _: () = assert!(256 * CONNECTION_SESSIONS_MAX <= SessionBounds::STANDARD.sessions);

/// What a request means to the sessions of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Nothing.
    Nothing,
    /// It opens one.
    Opens,
    /// It closes one.
    Closes(u64),
    /// It is a write of one.
    Uses(u64),
}

/// See the module.
///
/// Invariant: `held` and `opening` together are at most [`CONNECTION_SESSIONS_MAX`].
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Sessions, and the highest sequence that was asked for; 0 for none.
    held: BTreeMap<u64, u64>,
    /// Requests to open one that are not answered.
    opening: usize,
}

impl Holding {
    /// A request comes. What [`Holding::answered`] is to know of it.
    ///
    /// # Errors
    /// What the client is told when it would hold too many.
    pub(super) fn asks(&mut self, call: &Call) -> Result<About, String> {
        let full = self.held.len() + self.opening >= CONNECTION_SESSIONS_MAX;
        match call {
            Call::OpenSession if full => Err(too_many()),
            Call::OpenSession => {
                self.opening += 1;
                Ok(About::Opens)
            }
            Call::CloseSession { session } => Ok(About::Closes(*session)),
            Call::Write(write) => {
                let Some(stamp) = &write.stamp else { return Ok(About::Nothing) };
                match self.held.get_mut(&stamp.session) {
                    Some(reached) => *reached = stamp.sequence.max(*reached),
                    None if full => return Err(too_many()),
                    None => drop(self.held.insert(stamp.session, stamp.sequence)),
                }
                Ok(About::Uses(stamp.session))
            }
            _ => Ok(About::Nothing),
        }
    }

    /// It is answered.
    pub(super) fn answered(&mut self, about: About, result: &Result<Answer, Failure>) {
        let outcome = match result {
            Ok(Answer::Outcome(outcome)) => Some(outcome),
            _ => None,
        };
        match (about, outcome) {
            (About::Opens, outcome) => {
                self.opening -= 1;
                if let Some(Outcome::SessionOpened { session }) = outcome {
                    self.held.insert(*session, 0);
                }
            }
            (About::Closes(session), Some(Outcome::SessionClosed))
            | (About::Uses(session), Some(Outcome::SessionUnknown)) => {
                self.held.remove(&session);
            }
            _ => {}
        }
    }

    /// The connection has ended: what the replicated state is to hear.
    pub(super) fn releases(&mut self) -> impl Iterator<Item = Command> + use<> {
        let held = std::mem::take(&mut self.held);
        held.into_iter().map(|(session, sequence)| Command::ReleaseSession { session, sequence })
    }
}

fn too_many() -> String {
    format!(
        "busy: one connection holds {CONNECTION_SESSIONS_MAX} sessions at most; a client needs one, and keeps it: use \
         that, or close one that is not needed any more"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::{SessionStamp, Write};

    fn opened(session: u64) -> Result<Answer, Failure> {
        Ok(Answer::Outcome(Outcome::SessionOpened { session }))
    }

    fn write(session: u64, sequence: u64) -> Call {
        let stamp = Some(SessionStamp { session, sequence, answered_below: 1 });
        Call::Write(Write { stamp, ..Write::default() })
    }

    fn released(holding: &mut Holding) -> Vec<(u64, u64)> {
        let of = |command| match command {
            Command::ReleaseSession { session, sequence } => (session, sequence),
            other => panic!("{other:?}"),
        };
        holding.releases().map(of).collect()
    }

    /// A client opens sessions without end: it gets some, those under way among them, and is told what to do. One that
    /// it closes makes room.
    #[test]
    fn a_connection_opens_few_sessions() {
        let mut holding = Holding::default();
        let asked = (0..100).filter(|_| holding.asks(&Call::OpenSession).is_ok()).count();
        assert_eq!(asked, CONNECTION_SESSIONS_MAX);
        let busy = Err(Failure {
            class: crate::wire::client::Class::Busy,
            message: String::new(),
            leader: None,
        });
        holding.answered(About::Opens, &busy);
        assert_eq!(holding.asks(&Call::OpenSession), Ok(About::Opens), "that one came to nothing");
        for session in 1..=CONNECTION_SESSIONS_MAX as u64 {
            holding.answered(About::Opens, &opened(session));
        }
        let told = holding.asks(&Call::OpenSession).unwrap_err();
        assert!(told.starts_with("busy: one connection holds 16 sessions at most"), "{told}");
        let about = holding.asks(&Call::CloseSession { session: 3 }).unwrap();
        assert!(holding.asks(&Call::OpenSession).is_err(), "it is not closed yet");
        holding.answered(about, &Ok(Answer::Outcome(Outcome::SessionClosed)));
        assert_eq!(holding.asks(&Call::OpenSession), Ok(About::Opens));
    }

    /// A client writes for sessions that others have opened, to keep them: they count like its own. Those that nobody
    /// knows do not stay.
    #[test]
    fn a_session_that_is_used_is_held() {
        let mut holding = Holding::default();
        for session in 1..=CONNECTION_SESSIONS_MAX as u64 {
            assert_eq!(holding.asks(&write(session, 5)), Ok(About::Uses(session)));
        }
        assert_eq!(holding.asks(&write(1, 3)), Ok(About::Uses(1)));
        assert!(holding.asks(&write(99, 1)).unwrap_err().contains("one connection holds 16"));
        assert!(holding.asks(&Call::OpenSession).is_err());
        holding.answered(About::Uses(2), &Ok(Answer::Outcome(Outcome::SessionUnknown)));
        assert_eq!(holding.asks(&write(99, 1)), Ok(About::Uses(99)));
        let released = released(&mut holding);
        assert_eq!(released.len(), CONNECTION_SESSIONS_MAX);
        assert_eq!((released[0], released.last()), ((1, 5), Some(&(99, 1))));
    }
}
