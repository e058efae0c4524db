//! Nodes that speak the protocol over real sockets, with one store between them and a plan for
//! each: serve, refuse, or lose the answer at a chosen request.

use crate::kv::{
    Command, Committed, Limits, Machine, MemoryStore, Op, Outcome, Reader as _, SessionStamp,
    answer, encode_command,
};
use crate::wire::client::{
    Answer, Call, Change, Class, Failure, Joined, MemberInfo, MemberRole, Members, NodeStatus,
    Request, Response, put_response, take_request,
};
use crate::wire::frame::{CLIENT_FRAME_MAX, FrameReader, HANDSHAKE_FRAME_MAX};
use crate::wire::handshake::{Local, Remembered, Welcome, addressed, put_reject};
use crate::wire::proof::Listener;
use std::collections::VecDeque;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

/// The cluster that all fake nodes belong to.
const CLUSTER: u64 = 77;

/// What a node does with a request.
pub(crate) enum Step {
    /// Carries it out and answers.
    Serve,
    /// Answers with a failure, without carrying it out.
    Refuse(Failure),
    /// Carries it out, answers with a failure.
    ServeAndSay(Failure),
    /// Carries it out, then closes the connection without an answer.
    ServeAndClose,
    /// Closes the connection at once.
    Close,
    /// Never answers.
    Ignore,
    /// Answers with this outcome, without carrying it out.
    Say(Outcome),
}

pub(crate) fn failure(class: Class, leader: Option<&Node>) -> Failure {
    let leader = leader.map(|node| (node.shared.id, node.address.clone()));
    Failure { class, message: format!("made up: {class}"), leader }
}

/// The store that the nodes of one cluster share, as if replication took no time.
#[derive(Clone)]
pub(crate) struct Store(Arc<Mutex<Machine<MemoryStore>>>);

impl Store {
    pub(crate) fn new() -> Store {
        let machine = Machine::open(MemoryStore::default()).expect("memory does not fail");
        Store(Arc::new(Mutex::new(machine)))
    }

    fn apply(&self, command: &Command) -> Outcome {
        let mut machine = lock(&self.0);
        let mut bytes = Vec::new();
        encode_command(command, &mut bytes);
        let index = machine.applied() + 1;
        let outcomes = machine.apply([(index, Committed::Command(&bytes))]);
        outcomes.expect("memory does not fail").remove(0).1
    }

    /// Forgets a session, as if others had crowded it out.
    pub(crate) fn forget(&self, session: u64) {
        assert_eq!(self.apply(&Command::CloseSession { session }), Outcome::SessionClosed);
    }

    fn carry_out(&self, call: &Call, node: &Shared) -> Answer {
        match call {
            Call::Write(write) => Answer::Outcome(self.apply(&Command::Write(write.clone()))),
            Call::OpenSession => Answer::Outcome(self.apply(&Command::OpenSession)),
            Call::CloseSession { session } => {
                Answer::Outcome(self.apply(&Command::CloseSession { session: *session }))
            }
            Call::Query { query, .. } => {
                let reader = lock(&self.0).reader();
                let view = reader.view();
                let limits = Limits { max_page_keys: 10, ..Limits::default() };
                Answer::Reply(answer(&view, query, &limits).expect("memory does not fail"))
            }
            Call::Ping => Answer::Pong,
            Call::Members => Answer::Members(Members { members: lock(&node.members).clone() }),
            Call::Status => Answer::Status(NodeStatus {
                id: node.id,
                identity: node.id,
                cluster: CLUSTER,
                address: String::new(),
                role: MemberRole::Follower,
                leader: None,
                term: 3,
                commit: 12,
                applied: 10,
                last_index: 12,
                first_index: 1,
                log_bytes: 4096,
                connections: 1,
                version: "0".to_owned(),
                peers: Vec::new(),
                state: "following".to_owned(),
            }),
            Call::Transfer { .. } | Call::Compact => Answer::Ok,
            Call::Compaction => Answer::Compaction { left: None, bytes: 0 },
            Call::Backup => Answer::Backup { manifest: Vec::new() },
            Call::Piece { .. } => Answer::Bytes(Vec::new()),
            Call::Change(Change::Join { .. }) => {
                Answer::Joined(Joined { cluster: CLUSTER, id: 4, first: Vec::new(), secret: None })
            }
            &Call::Change(Change::Promote { id, .. } | Change::Remove { id, .. }) => {
                Answer::Changed { id }
            }
            Call::Change(Change::Replace { .. }) => Answer::Changed { id: 4 },
        }
    }
}

pub(crate) struct Shared {
    id: u64,
    store: Store,
    token: Vec<u8>,
    plan: Mutex<Plan>,
    log: Mutex<Vec<Call>>,
    leader: Mutex<Option<(u64, String)>>,
    members: Mutex<Vec<MemberInfo>>,
    stopped: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
}

type Plan = Box<dyn FnMut(&Call) -> Step + Send>;

/// A node; it is gone when this is dropped.
pub(crate) struct Node {
    pub(crate) address: String,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no test thread panics with a lock")
}

impl Node {
    /// A node that follows `plan`.
    pub(crate) fn start(
        id: u64,
        store: &Store,
        plan: impl FnMut(&Call) -> Step + Send + 'static,
    ) -> Node {
        Node::start_with_token(id, store, b"", plan)
    }

    pub(crate) fn start_with_token(
        id: u64,
        store: &Store,
        token: &[u8],
        plan: impl FnMut(&Call) -> Step + Send + 'static,
    ) -> Node {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound").to_string();
        let shared = Arc::new(Shared {
            id,
            store: store.clone(),
            token: token.to_vec(),
            plan: Mutex::new(Box::new(plan)),
            log: Mutex::default(),
            leader: Mutex::default(),
            members: Mutex::default(),
            stopped: AtomicBool::new(false),
            streams: Mutex::default(),
        });
        let inner = Arc::clone(&shared);
        let listener = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("accept");
                if inner.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let clone = stream.try_clone().expect("clone");
                lock(&inner.streams).push(clone);
                let shared = Arc::clone(&inner);
                std::thread::spawn(move || {
                    // A client that goes away is no failure of a test.
                    let _ = shared.serve(stream);
                });
            }
        });
        Node { address, shared, listener: Some(listener) }
    }

    /// A node that serves everything.
    pub(crate) fn good(id: u64, store: &Store) -> Node {
        Node::start(id, store, |_| Step::Serve)
    }

    /// A node that treats its first writes as told, and serves everything else.
    pub(crate) fn writes(id: u64, store: &Store, steps: impl IntoIterator<Item = Step>) -> Node {
        let mut steps: VecDeque<Step> = steps.into_iter().collect();
        Node::start(id, store, move |call| match call {
            Call::Write(_) => steps.pop_front().unwrap_or(Step::Serve),
            _ => Step::Serve,
        })
    }

    /// What its welcome says of the leader.
    pub(crate) fn names_leader(&self, node: &Node) {
        *lock(&self.shared.leader) = Some((node.shared.id, node.address.clone()));
    }

    /// What it says of the members.
    pub(crate) fn names_members(&self, nodes: &[&Node]) {
        let info = |node: &&Node| MemberInfo {
            id: node.shared.id,
            address: node.address.clone(),
            role: MemberRole::Follower,
            voter: true,
            replaces: None,
        };
        *lock(&self.shared.members) = nodes.iter().map(info).collect();
    }

    /// Every call it has received, in order.
    pub(crate) fn calls(&self) -> Vec<Call> {
        lock(&self.shared.log).clone()
    }

    /// The stamps of the writes it has received, in order.
    pub(crate) fn stamps(&self) -> Vec<Option<SessionStamp>> {
        let stamp = |call: Call| if let Call::Write(w) = call { Some(w.stamp) } else { None };
        self.calls().into_iter().filter_map(stamp).collect()
    }

    /// The first keys of the writes it has received, in order.
    pub(crate) fn written_keys(&self) -> Vec<String> {
        let key = |call: Call| match call {
            Call::Write(w) => {
                w.ops.first().map(|op: &Op| String::from_utf8_lossy(op.key()).into_owned())
            }
            _ => None,
        };
        self.calls().into_iter().filter_map(key).collect()
    }

    /// How many connections it has taken.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.shared.streams).len()
    }

    /// Ends it: its connections break, its port refuses.
    pub(crate) fn stop(&mut self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        let Some(listener) = self.listener.take() else { return };
        // Wakes the listener.
        let _ = TcpStream::connect(&self.address);
        let _ = listener.join();
        for stream in lock(&self.shared.streams).iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let end = stream.try_clone()?;
        let result = self.serve_until_end(&mut stream);
        // The clone that is kept for `stop` must not keep the connection open.
        let _ = end.shutdown(Shutdown::Both);
        result
    }

    fn serve_until_end(&self, stream: &mut TcpStream) -> std::io::Result<()> {
        let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
        let mut greeted = false;
        let mut listener: Option<Listener> = None;
        let mut preamble = false;
        loop {
            if !preamble {
                preamble = reader.preamble().map_err(std::io::Error::other)?;
            }
            let mut out = Vec::new();
            let mut close = false;
            while preamble && !close {
                let Some(body) = reader.next_frame().map_err(std::io::Error::other)? else { break };
                if !greeted {
                    let Some(heard) = listener.take() else {
                        let (heard, challenge) = Listener::new(body, &[9; 32]).expect("a hello");
                        out.extend_from_slice(&challenge);
                        listener = Some(heard);
                        continue;
                    };
                    greeted = self.greet(heard, body, &mut out);
                    close = !greeted;
                    reader.set_limit(CLIENT_FRAME_MAX);
                    continue;
                }
                let request = take_request(body).map_err(std::io::Error::other)?;
                close = !self.take(&request, &mut out);
            }
            stream.write_all(&out)?;
            if close {
                return Ok(());
            }
            let n = stream.read(reader.space())?;
            if n == 0 {
                return Ok(());
            }
            reader.filled(n);
        }
    }

    fn greet(&self, listener: Listener, body: &[u8], out: &mut Vec<u8>) -> bool {
        let local = Local { cluster: CLUSTER, node: self.id, identity: self.id };
        let admitted = listener
            .proof(body, &self.token)
            .and_then(|presented| addressed(&presented.hello, &local).map(|()| presented));
        let presented = match admitted {
            Ok(presented) => presented,
            Err(reject) => {
                put_reject(out, &reject);
                return false;
            }
        };
        let version = presented.version;
        let (leader, leader_address) = lock(&self.leader).clone().unwrap_or_default();
        let (cluster, node) = (CLUSTER, self.id);
        let identity = self.id;
        let remembered = Remembered::default();
        let welcome =
            Welcome { version, cluster, node, identity, leader, leader_address, remembered };
        out.extend_from_slice(&presented.answer(&Ok(welcome), None));
        true
    }

    /// False: close without another word.
    fn take(&self, request: &Request, out: &mut Vec<u8>) -> bool {
        lock(&self.log).push(request.call.clone());
        let step = (lock(&self.plan))(&request.call);
        let result = match step {
            Step::Serve => Ok(self.store.carry_out(&request.call, self)),
            Step::Refuse(failure) => Err(failure),
            Step::ServeAndSay(failure) => {
                self.store.carry_out(&request.call, self);
                Err(failure)
            }
            Step::ServeAndClose => {
                self.store.carry_out(&request.call, self);
                out.clear();
                return false;
            }
            Step::Close => {
                out.clear();
                return false;
            }
            Step::Ignore => return true,
            Step::Say(outcome) => Ok(Answer::Outcome(outcome)),
        };
        put_response(out, &Response { id: request.id, result });
        true
    }
}
