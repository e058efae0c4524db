//! A link that a test can slow down, break, or hold a handshake back on: in front of a node stands a
//! listener whose address the others know, and passes every connection on.
//!
//! What a dialer says first tells who it is, so that one link is treated unlike another. Only the way
//! towards the node is slowed down: that is where entries go.

use kontiki::wire::frame::{FrameReader, HANDSHAKE_FRAME_MAX, NATIVE_FIRST_BYTE};
use kontiki::wire::handshake::{Role, take_hello};
use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A slow link takes so many pieces a second.
const PIECES_A_SECOND: usize = 50;

/// What is done to the connections of one dialer.
#[derive(Debug, Default)]
struct Link {
    /// Bytes a second towards the node; none is as fast as it goes.
    rate: Option<usize>,
    /// Its next Hello as a peer is passed on after so long, whatever became of it meanwhile.
    hold: Option<Duration>,
    /// Held Hellos that were passed on.
    delivered: usize,
    /// Bytes that went to the node.
    bytes: usize,
    /// Both ends of its connections that are open.
    open: Vec<(TcpStream, TcpStream)>,
}

/// In front of one node; see the module.
#[derive(Clone, Debug)]
pub(crate) struct Proxy {
    pub(crate) address: String,
    links: Arc<Mutex<BTreeMap<u64, Link>>>,
}

impl Proxy {
    /// In front of each of the nodes that listen there, or will. Their ports ascend: ids go by them.
    pub(crate) fn before(nodes: &[String]) -> Vec<Proxy> {
        let listen = |_: &String| TcpListener::bind("127.0.0.1:0").expect("a free port");
        let mut listeners: Vec<TcpListener> = nodes.iter().map(listen).collect();
        listeners.sort_by_key(|l| l.local_addr().expect("its address").port());
        nodes.iter().zip(listeners).map(|(node, listener)| Proxy::run(node, listener)).collect()
    }

    fn run(node: &str, listener: TcpListener) -> Proxy {
        let address = listener.local_addr().expect("its address").to_string();
        let proxy = Proxy { address, links: Arc::default() };
        let (theirs, node) = (proxy.clone(), node.to_owned());
        // It ends with the process; a connection ends with its ends.
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (theirs, node) = (theirs.clone(), node.clone());
                thread::spawn(move || theirs.serve(stream, &node));
            }
        });
        proxy
    }

    fn links(&self) -> MutexGuard<'_, BTreeMap<u64, Link>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn link<T>(&self, from: u64, with: impl FnOnce(&mut Link) -> T) -> T {
        with(self.links().entry(from).or_default())
    }

    /// From now on what that node sends takes its time.
    pub(crate) fn slow_down(&self, from: u64, rate: usize) {
        self.link(from, |link| link.rate = Some(rate));
    }

    /// The next Hello of that node is passed on after so long.
    pub(crate) fn hold_next_hello(&self, from: u64, wait: Duration) {
        self.link(from, |link| link.hold = Some(wait));
    }

    /// How many held Hellos of that node were passed on.
    pub(crate) fn hellos_delivered(&self, from: u64) -> usize {
        self.link(from, |link| link.delivered)
    }

    /// Bytes that came from that node and went on, so far.
    pub(crate) fn bytes(&self, from: u64) -> usize {
        self.link(from, |link| link.bytes)
    }

    /// Breaks the connections of that node.
    pub(crate) fn cut(&self, from: u64) {
        for (dialer, node) in self.link(from, |link| std::mem::take(&mut link.open)) {
            let _ = dialer.shutdown(Shutdown::Both);
            let _ = node.shutdown(Shutdown::Both);
        }
    }

    fn serve(&self, mut dialer: TcpStream, node: &str) {
        let Ok((first, who)) = greeting(&mut dialer) else { return };
        let from = who.map_or(0, |(from, _)| from);
        if let Some((from, Role::Peer)) = who
            && let Some(wait) = self.link(from, |link| link.hold.take())
        {
            // As a segment that was lost and sent again: the dialer may be gone when it arrives.
            thread::sleep(wait);
            self.link(from, |link| link.delivered += 1);
        }
        let Ok(to) = TcpStream::connect(node) else { return };
        let ends = (dialer.try_clone(), to.try_clone(), dialer.try_clone(), to.try_clone());
        let (Ok(kept), Ok(kept_to), Ok(back), Ok(back_from)) = ends else { return };
        let _ = (dialer.set_nodelay(true), to.set_nodelay(true));
        self.link(from, |link| link.open.push((kept, kept_to)));
        thread::spawn(move || pump(back_from, back, |_| None));
        let mut to = to;
        if to.write_all(&first).is_err() {
            return;
        }
        pump(dialer, to, |bytes| {
            self.link(from, |link| {
                link.bytes += bytes;
                link.rate
            })
        });
    }
}

/// What a dialer says first, and who it is when that is a Hello.
type Greeting = (Vec<u8>, Option<(u64, Role)>);

fn greeting(dialer: &mut TcpStream) -> io::Result<Greeting> {
    let mut first = Vec::new();
    let mut reader = FrameReader::new(HANDSHAKE_FRAME_MAX);
    let mut buffer = [0; 4096];
    let mut native = false;
    loop {
        let n = dialer.read(&mut buffer)?;
        first.extend_from_slice(&buffer[..n]);
        if n == 0 || first[0] != NATIVE_FIRST_BYTE {
            return Ok((first, None));
        }
        reader.feed(&buffer[..n]);
        native = native || reader.preamble().map_err(io::Error::other)?;
        if !native {
            continue;
        }
        if let Some(body) = reader.next_frame().map_err(io::Error::other)? {
            let hello = take_hello(body).map_err(|e| io::Error::other(e.to_string()))?;
            return Ok((first, Some((hello.from, hello.role))));
        }
    }
}

/// Passes bytes on until one end closes, as fast as `rate` says when it is told of some.
fn pump(mut from: TcpStream, mut to: TcpStream, rate: impl Fn(usize) -> Option<usize>) {
    let mut buffer = vec![0; 64 << 10];
    let mut next = Instant::now();
    let mut piece = buffer.len();
    while let Ok(n @ 1..) = from.read(&mut buffer[..piece]) {
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
        if let Some(rate) = rate(n) {
            piece = (rate / PIECES_A_SECOND).clamp(1024, buffer.len());
            next = next.max(Instant::now()) + Duration::from_secs_f64(n as f64 / rate as f64);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
