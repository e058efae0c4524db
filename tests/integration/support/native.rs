//! A client of the native protocol that asks one node, once, and says exactly what is known then.

use kontiki::client::Connection;
use kontiki::kv::{Item, Query, Range, Reply};
use kontiki::wire::client::{Answer, Call, Class, Consistency, NodeStatus, Request};
use std::time::{Duration, Instant};

/// Time that a node is given to answer, milliseconds.
const DEADLINE_MS: u32 = 1500;
const GRACE: Duration = Duration::from_millis(500);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It surely had no effect.
    Refused(String),
    /// It may have had an effect.
    Unknown(String),
}

/// Connections to one node, made when needed.
pub(crate) struct Native {
    address: String,
    connection: Option<Connection>,
}

impl Native {
    pub(crate) fn new(address: &str) -> Native {
        Native { address: address.to_owned(), connection: None }
    }

    pub(crate) fn call(&mut self, call: Call) -> Result<Answer, Trouble> {
        let until = Instant::now() + Duration::from_millis(DEADLINE_MS.into()) + GRACE;
        let refused = |e: kontiki::client::Error| Trouble::Refused(e.to_string());
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::dial(&self.address, b"", 0, GRACE).map_err(refused)?,
        };
        let mut request = Request { id: 0, deadline_ms: DEADLINE_MS, call };
        let sent = connection.send(&mut request).map_err(refused)?;
        if let Err(e) = connection.flush(until) {
            let whole = connection.handed() >= sent.end;
            let text = e.to_string();
            return Err(if whole { Trouble::Unknown(text) } else { Trouble::Refused(text) });
        }
        let response = match connection.receive(until) {
            Ok(Some(response)) if response.id == sent.id => response,
            Ok(other) => return Err(Trouble::Unknown(format!("no answer: {other:?}"))),
            Err(e) => return Err(Trouble::Unknown(e.to_string())),
        };
        self.connection = Some(connection);
        response.result.map_err(|failure| match failure.class {
            Class::Unknown => Trouble::Unknown(failure.message),
            _ => Trouble::Refused(failure.message),
        })
    }

    pub(crate) fn query(
        &mut self,
        query: Query,
        consistency: Consistency,
    ) -> Result<Reply, Trouble> {
        match self.call(Call::Query { query, consistency })? {
            Answer::Reply(reply) => Ok(reply),
            other => panic!("{}: no reply to a query: {other:?}", self.address),
        }
    }

    pub(crate) fn status(&mut self) -> Result<NodeStatus, Trouble> {
        match self.call(Call::Status)? {
            Answer::Status(status) => Ok(status),
            other => panic!("{}: no status: {other:?}", self.address),
        }
    }

    /// Every key that begins with a prefix, page by page.
    pub(crate) fn all(&mut self, prefix: &str, consistency: Consistency) -> Vec<Item> {
        let mut end = prefix.as_bytes().to_vec();
        *end.last_mut().expect("a prefix") += 1;
        let mut range = Range { start: prefix.into(), end, ..Range::default() };
        let mut items = Vec::new();
        loop {
            match self.query(Query::Range(range.clone()), consistency) {
                Ok(Reply::Page(page)) => {
                    items.extend(page.items);
                    match page.cursor {
                        Some(cursor) => range.after = Some(cursor),
                        None => return items,
                    }
                }
                other => panic!("{}: no page: {other:?}", self.address),
            }
        }
    }
}
