//! Accepting connections and finding out which dialect each speaks.

use super::logging::warning;
use super::sockets::{SEND_TIMEOUT, read_by, write_patiently};
use super::{Shared, http, native, text};
use crate::wire::sniff::{Dialect, sniff};
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

/// Whoever has not said what it wants within so long is sent away; a person may type slowly.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(60);
/// Connections beyond the cap that are heard out. A peer among them is served: clients that take
/// every place must not cost the cluster its majority. The others are told why not, in their own
/// dialect. More than a cluster has members.
const OVER_CAP_MAX: usize = 32;
/// Those beyond the cap must be quick: the places are few.
const OVER_CAP_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection thread needs little stack: no recursion, buffers on the heap.
const STACK_BYTES: usize = 256 << 10;
/// After a failed accept (out of file handles, say) the listener rests, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

pub(crate) fn run(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => start(stream, shared),
            Err(e) => {
                warning!("cannot accept a connection: {e}");
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

fn start(mut stream: TcpStream, shared: &Arc<Shared>) {
    let open = shared.connections.fetch_add(1, Ordering::Relaxed);
    let place = Place { shared: Arc::clone(shared), over_cap: open >= shared.connections_max };
    if open >= shared.connections_max.saturating_add(OVER_CAP_MAX) {
        // Readable in the text dialect and recognisably no frame in the native one. One small
        // write into an empty send buffer does not block.
        let _ = stream.write_all(format!("-ERR {}\r\n", shared.full()).as_bytes());
        return;
    }
    let builder = thread::Builder::new().name("connection".into()).stack_size(STACK_BYTES);
    // Whatever ends a connection concerns that connection alone.
    let spawned = builder.spawn(move || drop(serve(stream, &place)));
    if let Err(e) = spawned {
        warning!("cannot start a thread for a connection: {e}");
    }
}

/// A connection's place among those that are served at once, given back when dropped.
struct Place {
    shared: Arc<Shared>,
    over_cap: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// Why a connection is refused at the cap.
    pub(crate) fn full(&self) -> String {
        format!("busy: {} connections are the limit (--max-connections)", self.connections_max)
    }
}

fn serve(stream: TcpStream, place: &Place) -> io::Result<()> {
    let Place { shared, over_cap } = place;
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    let timeout = if *over_cap { OVER_CAP_TIMEOUT } else { FIRST_BYTES_TIMEOUT };
    let until = Instant::now() + timeout;
    let mut first = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = read_by(&stream, &mut buffer, until)?;
        if n == 0 {
            return Ok(());
        }
        first.extend_from_slice(&buffer[..n]);
        match sniff(&first) {
            Dialect::NeedMore => {}
            Dialect::Native => return native::serve(&stream, &first, shared, *over_cap),
            Dialect::Http if *over_cap => return http::refuse(&stream, &shared.full()),
            Dialect::Http => return http::serve(&stream, first, shared),
            Dialect::Text if *over_cap => {
                let line = format!("-ERR {}\r\n", shared.full());
                return write_patiently(&stream, line.as_bytes());
            }
            Dialect::Text => return text::serve(stream, &first, shared),
        }
    }
}
