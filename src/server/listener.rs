//! Accepting connections.

use super::logging::warning;
use super::sockets::SEND_TIMEOUT;
use super::{Shared, connection};
use std::io::{self, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// Connections beyond the cap that are heard out. A peer among them is served: clients that take
/// every place must not cost the cluster its majority. The others are told why not, in their own
/// dialect. More than a cluster has members.
const OVER_CAP_MAX: usize = 32;
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
    let open = shared.node.connections.fetch_add(1, Ordering::Relaxed);
    let place = Place { shared: Arc::clone(shared), over_cap: open >= shared.node.connections_max };
    if open >= shared.node.connections_max.saturating_add(OVER_CAP_MAX) {
        // Readable in the text dialect and recognisably no frame in the native one. One small
        // write into an empty send buffer does not block.
        let _ = stream.write_all(format!("-ERR {}\r\n", shared.node.full()).as_bytes());
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
        self.shared.node.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

fn serve(stream: TcpStream, place: &Place) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    connection::serve(stream, &place.shared, place.over_cap)
}
