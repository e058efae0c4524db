//! Where the answers to one connection's requests are collected.
//!
//! A connection has one set of requests under way at a time. When the last of them is answered,
//! either the connection's thread is woken, once; or, if it asked for that, whoever brought the
//! last answer writes all of them to the socket, and the thread need not wake at all: it is reading
//! the client's next requests already. Only small answers are written so, and a client that does
//! not take them costs the writer one [`super::sockets::PATIENCE`], once: a thread of its own then writes the rest.

use super::sockets::{is_timeout, write_patiently};
use crate::api::answers::{AnswerSet, Brought};
use crate::api::budget::Budget;
use crate::env::descriptors::{RESERVE, Shortage};
use crate::env::real::FAILED_WRITE_TAKES_NOTHING;
use crate::node::Answer;
use std::io::{self, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// Turns the answers to a set of requests, in their order, into the bytes for the client.
pub(crate) type Encode = Box<dyn FnOnce(Vec<Answer>) -> Vec<u8> + Send>;

/// Collects answers; shared by the connection's thread and whoever answers.
pub(crate) struct Mailbox {
    state: Mutex<State>,
    settled: Condvar,
}

struct State {
    answers: AnswerSet,
    /// Who brings the last answer writes to the socket.
    direct: Option<(Arc<TcpStream>, Encode)>,
    /// That is being done.
    writing: bool,
    /// The client has kept a writer waiting before: from now on only its own threads wait.
    slow: bool,
}

impl std::fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mailbox").finish_non_exhaustive()
    }
}

impl Mailbox {
    /// One of which the answers are part of this budget until the connection takes them.
    pub(crate) fn new(budget: &Arc<Budget>) -> Arc<Mailbox> {
        let answers = AnswerSet::new(budget);
        let state = Mutex::new(State { answers, direct: None, writing: false, slow: false });
        Arc::new(Mailbox { state, settled: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes room for answers to `count` requests numbered from `first`. Nothing may be under way.
    pub(crate) fn open(&self, first: u64, count: usize, direct: Option<(Arc<TcpStream>, Encode)>) {
        let mut state = self.lock();
        state.answers.open(first, count);
        state.direct = direct;
    }

    /// Brings the answer to one request; gives what is to be written now, if it was the last one and is to
    /// be written directly. An answer that nobody waits for is passed over.
    #[must_use]
    pub(crate) fn put(self: &Arc<Self>, number: u64, answer: Answer) -> Option<DirectWrite> {
        let mut state = self.lock();
        if state.answers.put(number, answer) != Brought::Last {
            return None;
        }
        let Some((stream, encode)) = state.direct.take() else {
            drop(state);
            self.settled.notify_one();
            return None;
        };
        state.writing = true;
        let answers = state.answers.take();
        Some(DirectWrite { mailbox: Arc::clone(self), stream, encode, answers })
    }

    fn write(self: &Arc<Self>, stream: &Arc<TcpStream>, bytes: Vec<u8>) {
        let slow = self.lock().slow || !FAILED_WRITE_TAKES_NOTHING;
        let written = if slow { Ok(0) } else { write_once(stream, &bytes) };
        match written {
            Ok(n) if n == bytes.len() => self.written(),
            Ok(n) => self.write_rest(stream, bytes, n),
            // The connection's thread finds out by itself.
            Err(_) => self.written(),
        }
    }

    fn written(&self) {
        self.lock().writing = false;
        self.settled.notify_one();
    }

    /// The client is slow: what is left is nobody's business but its own.
    fn write_rest(self: &Arc<Self>, stream: &Arc<TcpStream>, bytes: Vec<u8>, from: usize) {
        self.lock().slow = true;
        let (mailbox, theirs) = (Arc::clone(self), Arc::clone(stream));
        let spawned = thread::Builder::new().name("slow-client".into()).spawn(move || {
            if write_patiently(&theirs, &bytes[from..]).is_err() {
                let _ = theirs.shutdown(Shutdown::Both);
            }
            mailbox.written();
        });
        if spawned.is_err() {
            RESERVE.report(Shortage::Threads);
            // Half an answer may be out: nothing sensible can follow it.
            let _ = stream.shutdown(Shutdown::Both);
            self.written();
        }
    }

    /// Waits until every answer is here and written, if it was to be written directly; gives those
    /// that were not.
    pub(crate) fn wait(&self) -> Vec<Answer> {
        let mut state = self.lock();
        while state.answers.missing() > 0 || state.writing {
            state = self.settled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.answers.take()
    }
}

/// A whole set of answers, to be written to the client's socket by a thread that may touch it. The
/// connection waits until that is done.
pub(crate) struct DirectWrite {
    mailbox: Arc<Mailbox>,
    stream: Arc<TcpStream>,
    encode: Encode,
    answers: Vec<Answer>,
}

impl DirectWrite {
    /// Writes them. A client that does not take them costs one [`super::sockets::PATIENCE`], once.
    pub(crate) fn write(self) {
        let bytes = (self.encode)(self.answers);
        self.mailbox.write(&self.stream, bytes);
    }
}

/// Writes what the socket takes within its send timeout: all, some or nothing.
fn write_once(mut stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    loop {
        match stream.write(bytes) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if is_timeout(&e) => return Ok(0),
            done => return done,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sockets::{SEND_TIMEOUT, read};
    use super::super::tests::parts::socket_pair;
    use super::*;
    use crate::node::{Refusal, Verdict};
    use std::sync::mpsc::{Sender, channel};

    /// Sets of answers that a stress test brings.
    const SETS: usize = 2_000;

    fn answer(number: u64) -> Answer {
        let bytes_max = number as usize;
        Answer::Write(Verdict::NotApplied(Refusal::Busy { bytes_max }))
    }

    /// Brings an answer, and writes what is then to be written.
    fn put(mailbox: &Arc<Mailbox>, number: u64) {
        if let Some(write) = mailbox.put(number, answer(number)) {
            write.write();
        }
    }

    fn number_of(answer: &Answer) -> u64 {
        match answer {
            Answer::Write(Verdict::NotApplied(Refusal::Busy { bytes_max })) => *bytes_max as u64,
            other => panic!("{other:?}"),
        }
    }

    /// Threads that bring answers, each what it is told to.
    fn answerers(mailbox: &Arc<Mailbox>, count: usize) -> Vec<Sender<u64>> {
        let spawn = |_| {
            let (sender, numbers) = channel::<u64>();
            let mailbox = Arc::clone(mailbox);
            thread::spawn(move || {
                while let Ok(number) = numbers.recv() {
                    put(&mailbox, number);
                }
            });
            sender
        };
        (0..count).map(spawn).collect()
    }

    /// Three threads race to bring the answers to one set after another, some twice and some for
    /// sets that are over. The connection's thread never waits in vain, and finds each answer in its place.
    #[test]
    fn no_answer_is_lost_or_misplaced() {
        let mailbox = Mailbox::new(&Budget::new(0, 0));
        let senders = answerers(&mailbox, 3);
        let mut first = 0;
        for set in 0..SETS {
            let count = set % 7;
            mailbox.open(first, count, None);
            for number in (first..).take(count) {
                senders[(number + set as u64) as usize % 3].send(number).unwrap();
                senders[(number + 1) as usize % 3].send(number.saturating_sub(3)).unwrap();
            }
            let numbers: Vec<u64> = mailbox.wait().iter().map(number_of).collect();
            assert_eq!(numbers, (first..).take(count).collect::<Vec<_>>());
            first += count as u64;
        }
    }

    fn lines(answers: &[Answer]) -> Vec<u8> {
        answers.iter().flat_map(|a| format!("{}\n", number_of(a)).into_bytes()).collect()
    }

    /// As above, and whoever brings the last answer writes them. The client sees every answer once
    /// and in order, and the connection's thread goes on only when they are out.
    #[test]
    fn directly_written_answers_come_whole_and_in_order() {
        let (ours, theirs) = socket_pair();
        ours.set_write_timeout(Some(SEND_TIMEOUT)).unwrap();
        let ours = Arc::new(ours);
        let client = thread::spawn(move || {
            let mut all = Vec::new();
            let mut buffer = vec![0; 64 << 10];
            while let Ok(n @ 1..) = read(&theirs, &mut buffer) {
                all.extend_from_slice(&buffer[..n]);
            }
            all
        });
        let mailbox = Mailbox::new(&Budget::new(0, 0));
        let senders = answerers(&mailbox, 3);
        let mut first = 0;
        for _ in 0..SETS {
            let count = 1 + first as usize % 5;
            let encode: Encode = Box::new(|answers| lines(&answers));
            mailbox.open(first, count, Some((Arc::clone(&ours), encode)));
            for number in (first..).take(count) {
                senders[number as usize % 3].send(number).unwrap();
            }
            assert_eq!(mailbox.wait(), [], "they are written, not handed over");
            first += count as u64;
        }
        ours.shutdown(Shutdown::Write).unwrap();
        let wanted: Vec<u8> = (0..first).flat_map(|n| format!("{n}\n").into_bytes()).collect();
        assert_eq!(client.join().unwrap(), wanted);
    }

    /// A client sends writes and reads nothing. It costs whoever answers it a moment once, not each
    /// time; the rest is written by a thread of its own, and arrives whole when the client reads.
    #[test]
    fn a_client_that_does_not_read_delays_nobody_twice() {
        let (ours, theirs) = socket_pair();
        ours.set_write_timeout(Some(SEND_TIMEOUT)).unwrap();
        let ours = Arc::new(ours);
        let mailbox = Mailbox::new(&Budget::new(0, 0));
        // More than any buffers of two sockets hold.
        let size = 32 << 20;
        let big: Encode = Box::new(move |_| vec![b'x'; size]);
        mailbox.open(0, 1, Some((Arc::clone(&ours), big)));
        put(&mailbox, 0);
        assert!(mailbox.lock().writing && mailbox.lock().slow, "the answerer has gone on");
        let client = thread::spawn(move || {
            let (mut total, mut last) = (0, 0);
            let mut buffer = vec![0; 1 << 20];
            while let Ok(n @ 1..) = read(&theirs, &mut buffer) {
                total += n;
                last = buffer[n - 1];
            }
            (total, last)
        });
        mailbox.wait();
        let small: Encode = Box::new(|_| b"y".to_vec());
        mailbox.open(1, 1, Some((Arc::clone(&ours), small)));
        put(&mailbox, 1);
        mailbox.wait();
        ours.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.join().unwrap(), (size + 1, b'y'));
    }

    /// The raft loop brings the last answer: nothing is written until a thread that may touch the socket
    /// does it, and the connection waits so long.
    #[test]
    fn bringing_an_answer_touches_no_socket() {
        let (ours, theirs) = socket_pair();
        let mailbox = Mailbox::new(&Budget::new(0, 0));
        let encode: Encode = Box::new(|answers| vec![b'x'; answers.len()]);
        mailbox.open(0, 2, Some((Arc::new(ours), encode)));
        assert!(mailbox.put(1, answer(1)).is_none(), "one is missing");
        let last = mailbox.put(0, answer(0)).expect("the last one");
        theirs.set_nonblocking(true).unwrap();
        assert!(is_timeout(&read(&theirs, &mut [0; 4]).unwrap_err()), "nothing is written yet");
        theirs.set_nonblocking(false).unwrap();
        last.write();
        assert!(mailbox.wait().is_empty());
        assert_eq!(read(&theirs, &mut [0; 4]).unwrap(), 2);
    }
}
