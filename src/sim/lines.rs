//! Simulated clients that speak the text dialect, and take nothing for granted.
//!
//! Each sends several commands at once, in one form or the other, and reads the answers. Most are about
//! a key that is its own: there every answer must be the one that follows from the order in which the
//! commands were given. The others are about the keys of all clients, and part of the history. After a
//! connection that ended with a write in doubt the client takes another key. Now and then it asks as a load
//! balancer does, by HTTP, how the node is.

use super::checks::{Violation, violated};
use super::dice::Dice;
use super::linearizability::{Answer, Call, End, Op, Seen};
use super::node::{CLIENTS_TOKEN, ClientId};
use super::serving::ServedEvent;
use super::traffic::DELAY_US;
use super::world::{ANY_LIFE, Event, World};
use crate::raft::NodeId;
use std::collections::VecDeque;

/// Mean pause between two acts.
const THINK_US: u64 = 500_000;
/// Commands that are sent together.
const TOGETHER_MAX: u64 = 6;
/// An answer that has not come for so long is not waited for.
const PATIENCE_US: u64 = 8_000_000;
/// Pages that are asked for, and what stands in those that say yes.
const PAGES: [(&str, &str); 3] = [
    ("/health", "ok: serves linearizable reads"),
    ("/health/leader", "ok: leads"),
    ("/metrics", "kontiki_applied_index "),
];
/// The first number of these clients in the history.
const FIRST_ID: u64 = 1_000;

/// Something happens to one of them.
#[derive(Debug)]
pub(super) enum LineEvent {
    /// It may act.
    Acts,
    /// Bytes arrive.
    Hears { connection: ClientId, bytes: Vec<u8> },
    /// Its connection is gone.
    Lost { connection: ClientId },
}

/// A command whose answer is awaited.
#[derive(Debug)]
enum Sent {
    /// Something that needs nobody.
    Fixed(&'static [u8]),
    /// About its own key.
    Own(Own),
    /// About a key of all.
    Shared(Call),
    /// A page that is asked for by HTTP.
    Page(&'static str),
}

#[derive(Debug)]
enum Own {
    Set(Vec<u8>),
    Get,
    Delete,
}

/// What a node answers.
#[derive(Debug, PartialEq)]
enum Reply {
    Ok,
    Pong,
    Value(Option<Vec<u8>>),
    Number(u64),
    Refused,
    Unknown,
    /// There is no place for the client.
    NoPlace,
    Other(Vec<u8>),
}

#[derive(Clone, Copy, Debug)]
struct Link {
    number: ClientId,
    node: NodeId,
    life: u64,
    due_us: u64,
}

/// A client.
#[derive(Debug)]
pub(super) struct LineClient {
    id: u64,
    dice: Dice,
    keys: u64,
    values: u64,
    link: Option<Link>,
    heard: Vec<u8>,
    sent: VecDeque<Sent>,
    /// When it last sent something.
    sent_us: u64,
    /// How many keys of its own it has had.
    generation: u64,
    /// What its key holds.
    own: Option<Vec<u8>>,
    pub(super) history: Vec<Call>,
}

impl LineClient {
    pub(super) fn new(number: u64, keys: u64, dice: Dice) -> LineClient {
        LineClient {
            id: FIRST_ID + number,
            dice,
            keys,
            values: 0,
            link: None,
            heard: Vec::new(),
            sent: VecDeque::new(),
            sent_us: 0,
            generation: 0,
            own: None,
            history: Vec::new(),
        }
    }

    /// Whether that is its connection.
    pub(super) fn has(&self, connection: ClientId) -> bool {
        self.link.is_some_and(|link| link.number == connection)
    }

    /// The connection is over: what was not answered is in doubt.
    pub(super) fn give_up(&mut self) {
        self.link = None;
        self.heard.clear();
        for sent in std::mem::take(&mut self.sent) {
            match sent {
                Sent::Shared(call) => self.history.push(call),
                Sent::Own(Own::Set(_) | Own::Delete) => self.in_doubt(),
                Sent::Own(Own::Get) | Sent::Fixed(_) | Sent::Page(_) => {}
            }
        }
    }

    /// There was no place for it: nothing of what it sent was taken, surely.
    fn turned_away(&mut self) {
        let refused = |sent| match sent {
            Sent::Shared(call) => Some(Call { end: End::Refused, ..call }),
            _ => None,
        };
        self.history.extend(std::mem::take(&mut self.sent).into_iter().filter_map(refused));
        self.give_up();
    }

    /// A write of its key may take effect at any time.
    fn in_doubt(&mut self) {
        self.generation += 1;
        self.own = None;
    }

    fn commands(&mut self, now_us: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let own = format!("line-{}-{}", self.id, self.generation);
        for _ in 0..self.dice.between(1, TOGETHER_MAX) {
            self.values += 1;
            let pad = if self.dice.chance(1, 6) { "x".repeat(500) } else { String::new() };
            let value = format!("{}-{}{pad}", self.id, self.values);
            let shared = self.dice.chance(1, 5);
            let key = match shared {
                true => format!("key-{}", self.dice.below(self.keys)),
                false => own.clone(),
            };
            let (words, what, op) = match self.dice.below(8) {
                0 => {
                    self.say(&mut bytes, &["PING"]);
                    self.sent.push_back(Sent::Fixed(b"+PONG"));
                    continue;
                }
                1..4 => (vec!["SET", &key, &value], Own::Set(value.clone().into_bytes()), {
                    Op::Put { value: value.clone().into_bytes() }
                }),
                4..7 => (vec!["GET", &key], Own::Get, Op::Get),
                _ => (vec!["DEL", &key], Own::Delete, Op::Delete),
            };
            self.say(&mut bytes, &words);
            let key = key.clone().into_bytes();
            self.sent.push_back(match shared {
                true => {
                    Sent::Shared(Call { client: self.id, key, op, called: now_us, end: End::Open })
                }
                false => Sent::Own(what),
            });
        }
        bytes
    }

    /// In one of the two forms that a command may have.
    fn say(&mut self, bytes: &mut Vec<u8>, words: &[&str]) {
        if self.dice.chance(1, 2) {
            bytes.extend_from_slice(words.join(" ").as_bytes());
            bytes.extend_from_slice(b"\r\n");
            return;
        }
        bytes.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
        for word in words {
            bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
        }
    }

    /// The next answer is there.
    fn told(&mut self, reply: &Reply, now_us: u64) -> Result<(), Violation> {
        let wrong = |what: &dyn std::fmt::Debug, reply: &Reply| {
            violated("text commands take effect in their order", format!("{what:?}: {reply:?}"))
        };
        let Some(sent) = self.sent.pop_front() else {
            return violated("every command is answered once", format!("{reply:?}"));
        };
        match (&sent, reply) {
            (Sent::Fixed(b"+PONG"), Reply::Pong) | (Sent::Fixed(_), Reply::Ok) => {}
            (Sent::Fixed(b"+OK"), Reply::NoPlace) => self.turned_away(),
            (Sent::Own(Own::Get), Reply::Value(value)) if *value == self.own => {}
            (Sent::Own(Own::Delete), Reply::Number(n)) if *n == u64::from(self.own.is_some()) => {
                self.own = None;
            }
            (Sent::Own(Own::Set(value)), Reply::Ok) => self.own = Some(value.clone()),
            // Nothing was done, surely.
            (Sent::Own(_), Reply::Refused) => {}
            (Sent::Own(Own::Set(_) | Own::Delete), Reply::Unknown) => {
                // What follows is about a key that nobody knows any more.
                self.give_up();
                self.in_doubt();
            }
            (Sent::Shared(call), reply) => {
                let answer = match (&call.op, reply) {
                    (Op::Put { .. }, Reply::Ok) => Some(Answer::Written { revision: None }),
                    (Op::Get, Reply::Value(value)) => {
                        let seen = |value: &Vec<u8>| Seen { value: value.clone(), revision: None };
                        Some(Answer::Found(value.as_ref().map(seen)))
                    }
                    (Op::Delete, Reply::Number(n)) => {
                        Some(Answer::Deleted { existed: Some(*n > 0), revision: None })
                    }
                    (_, Reply::Refused | Reply::Unknown) => None,
                    _ => return wrong(&sent, reply),
                };
                let end = match answer {
                    Some(answer) => End::Answered { at: now_us, answer },
                    None if *reply == Reply::Refused => End::Refused,
                    None => End::Open,
                };
                self.history.push(Call { end, ..call.clone() });
            }
            _ => return wrong(&sent, reply),
        }
        Ok(())
    }
}

/// Status and body of an answer by HTTP, once all of it is there.
fn page(bytes: &[u8]) -> Option<(u16, String)> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length =
        |line: &str| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok();
    let length: usize = head.lines().find_map(length)?;
    (body.len() == length).then(|| (status, body.to_string()))
}

/// The first answer in what was heard, and its length.
fn parse(bytes: &[u8]) -> Option<(Reply, usize)> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let line = &bytes[..end];
    let number = |digits: &[u8]| std::str::from_utf8(digits).ok()?.parse::<u64>().ok();
    let reply = match line {
        b"+OK" => Reply::Ok,
        b"+PONG" => Reply::Pong,
        b"$-1" => Reply::Value(None),
        [b'$', digits @ ..] => {
            let len = number(digits)? as usize;
            let value = bytes.get(end + 2..end + 2 + len)?;
            bytes.get(end + 2 + len + 1)?;
            return Some((Reply::Value(Some(value.to_vec())), end + 2 + len + 2));
        }
        [b':', digits @ ..] => number(digits).map_or(Reply::Other(line.to_vec()), Reply::Number),
        _ if line.starts_with(b"-ERR UNKNOWN") => Reply::Unknown,
        _ if line.starts_with(b"-ERR busy") => Reply::NoPlace,
        _ if [&b"-TRYAGAIN"[..], b"-CLUSTERDOWN", b"-OOM"].iter().any(|w| line.starts_with(w)) => {
            Reply::Refused
        }
        other => Reply::Other(other.to_vec()),
    };
    Some((reply, end + 2))
}

impl World {
    pub(super) fn on_line(&mut self, client: usize, event: LineEvent) -> Result<(), Violation> {
        match event {
            LineEvent::Acts => self.line_acts(client),
            LineEvent::Lost { connection } if self.lines[client].has(connection) => {
                self.lines[client].give_up();
            }
            LineEvent::Hears { connection, bytes } if self.lines[client].has(connection) => {
                let now_us = self.now_us;
                self.lines[client].heard.extend(bytes);
                if let Some(Sent::Page(path)) = self.lines[client].sent.front() {
                    return self.line_page(client, path);
                }
                while self.lines[client].has(connection)
                    && let Some((reply, len)) = parse(&self.lines[client].heard)
                {
                    self.count(match &reply {
                        Reply::Refused => "text commands refused",
                        Reply::Unknown => "text commands of unknown outcome",
                        Reply::NoPlace => "text clients without a place",
                        _ => "text commands answered",
                    });
                    self.lines[client].heard.drain(..len);
                    let link = self.lines[client].link;
                    self.lines[client].told(&reply, now_us)?;
                    if let (Some(link), None) = (link, self.lines[client].link) {
                        self.line_sends(&link, ServedEvent::Gone);
                    }
                }
            }
            LineEvent::Hears { .. } | LineEvent::Lost { .. } => {}
        }
        Ok(())
    }

    /// An answer by HTTP, or a part of it, is there.
    fn line_page(&mut self, client: usize, path: &'static str) -> Result<(), Violation> {
        let Some((status, body)) = page(&self.lines[client].heard) else { return Ok(()) };
        let yes = PAGES.iter().find(|(of, _)| *of == path).map_or("", |(_, yes)| yes);
        self.count(if status == 200 { "pages that say yes" } else { "pages that say no" });
        if (status != 200 && status != 503) || (status == 200) != body.contains(yes) {
            return violated("a page says how the node is", format!("{path}: {status} {body}"));
        }
        let link = self.lines[client].link;
        self.lines[client].give_up();
        if let Some(link) = link {
            self.line_sends(&link, ServedEvent::Gone);
        }
        Ok(())
    }

    pub(super) fn line_in(&mut self, delay_us: u64, client: usize, event: LineEvent) {
        self.schedule(delay_us, 0, ANY_LIFE, Event::Line { client, event });
    }

    fn line_acts(&mut self, client: usize) {
        let think_us = self.dice.between(THINK_US / 4, THINK_US * 2);
        self.line_in(think_us, client, LineEvent::Acts);
        let now_us = self.now_us;
        let line = &mut self.lines[client];
        let tired = !line.sent.is_empty() && now_us > line.sent_us + PATIENCE_US;
        let leaves = line.link.is_some() && line.dice.chance(1, 40);
        if tired || leaves {
            let link = line.link;
            line.give_up();
            self.count(if tired {
                "text clients that lost patience"
            } else {
                "text clients that left"
            });
            if let Some(link) = link {
                self.line_sends(&link, ServedEvent::Gone);
            }
            return;
        }
        if self.quiet || !self.lines[client].sent.is_empty() {
            return;
        }
        let greets = self.lines[client].link.is_none();
        if greets && !self.line_dials(client) {
            return;
        }
        let line = &mut self.lines[client];
        let mut bytes = Vec::new();
        let asks = greets && line.dice.chance(1, 8);
        if asks {
            let (path, _) = *line.dice.pick(&PAGES);
            let token = String::from_utf8_lossy(CLIENTS_TOKEN);
            let head = format!("host: node\r\nauthorization: Bearer {token}\r\n\r\n");
            bytes.extend(format!("GET {path} HTTP/1.1\r\n{head}").bytes());
            line.sent.push_back(Sent::Page(path));
        } else if greets {
            let token = String::from_utf8_lossy(CLIENTS_TOKEN).into_owned();
            line.say(&mut bytes, &["AUTH", &token]);
            line.sent.push_back(Sent::Fixed(b"+OK"));
        }
        if !asks {
            bytes.extend(line.commands(now_us));
        }
        line.sent_us = now_us;
        // They may arrive in two parts.
        let first = line.dice.below(bytes.len() as u64) as usize;
        let rest = if line.dice.chance(1, 3) { bytes.split_off(first.max(1)) } else { Vec::new() };
        for part in [bytes, rest] {
            let Some(mut link) = self.lines[client].link else { return };
            link.due_us =
                (now_us + self.dice.log_between(DELAY_US.0, DELAY_US.1)).max(link.due_us + 1);
            self.lines[client].link = Some(link);
            if !part.is_empty() {
                self.line_sends(&link, ServedEvent::Bytes(part));
            }
        }
    }

    fn line_dials(&mut self, client: usize) -> bool {
        let running: Vec<(NodeId, u64)> =
            self.nodes.values().filter(|n| n.up.is_some()).map(|n| (n.id, n.life)).collect();
        if running.is_empty() {
            return false;
        }
        let &(node, life) = self.dice.pick(&running);
        self.connections += 1;
        let link = Link { number: self.connections, node, life, due_us: self.now_us + DELAY_US.0 };
        self.lines[client].link = Some(link);
        self.line_sends(&link, ServedEvent::Accepted);
        true
    }

    fn line_sends(&mut self, link: &Link, event: ServedEvent) {
        let delay_us = link.due_us.saturating_sub(self.now_us) + 1;
        let event = Event::Served { connection: link.number, event };
        self.schedule(delay_us, link.node, link.life, event);
    }

    /// A process has ended, and says so unless the power is gone.
    pub(super) fn end_lines(&mut self, node: NodeId, power_lost: bool) {
        for client in 0..self.lines.len() {
            let link = self.lines[client].link.filter(|link| link.node == node && !power_lost);
            if let Some(Link { number: connection, .. }) = link {
                let delay_us = self.dice.log_between(DELAY_US.0, DELAY_US.1);
                self.line_in(delay_us, client, LineEvent::Lost { connection });
            }
        }
    }
}
