//! Accepting connections, and closing those that give their place up.
//!
//! Who has a place, and who goes, is decided by [`Places`]. A shortage of descriptors or threads is nothing that
//! ends the node: a thread of its own, the keeper, hears of it, closes what can be spared and fills
//! the reserve again ([`crate::env::descriptors`]); who found nothing tries again meanwhile.

use super::logging::{Rate, warning};
use super::sockets::SEND_TIMEOUT;
use super::{Shared, connection, lock};
use crate::api::places::{Arrived, Place, Places};
use crate::env::descriptors::{self, RESERVE, Shortage};
use std::io;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A connection thread needs little stack: no recursion, buffers on the heap.
const STACK_BYTES: usize = 256 << 10;
/// After a failed accept the listener rests, or it would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);
/// Attempts to start a thread for a connection, with that pause between two.
const THREAD_TRIES: u32 = 25;
/// Connections that were closed need a moment to end before it is looked whether that was enough.
const KEEPER_PAUSE: Duration = Duration::from_millis(20);

/// The connections that others have made, and what they are closed by.
#[derive(Debug)]
pub(crate) struct OpenConnections {
    places: Mutex<Places<Arc<TcpStream>>>,
    shed_lines: Rate,
    scarce_lines: Rate,
    accept_lines: Rate,
}

impl OpenConnections {
    pub(crate) fn new(max: usize) -> OpenConnections {
        OpenConnections {
            places: Mutex::new(Places::new(max)),
            shed_lines: Rate::default(),
            scarce_lines: Rate::default(),
            accept_lines: Rate::default(),
        }
    }
}

/// Accepts until the process ends.
pub(crate) fn run(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        match listener.accept() {
            Ok((stream, _)) => start(&Arc::new(stream), shared),
            Err(e) => {
                if descriptors::is_out_of_descriptors(&e) {
                    RESERVE.report(Shortage::Descriptors);
                } else if let Some(more) = shared.open.accept_lines.pass() {
                    warning!("cannot accept a connection: {e} ({more} more were not logged)");
                }
                thread::sleep(ACCEPT_PAUSE);
            }
        }
    }
}

/// Starts a connection's thread. Whatever keeps it from being started, or ends it, concerns that connection alone.
fn start(stream: &Arc<TcpStream>, shared: &Arc<Shared>) {
    for _ in 0..THREAD_TRIES {
        let seat = Seat::take(stream, shared);
        let builder = thread::Builder::new().name("connection".into()).stack_size(STACK_BYTES);
        let theirs = Arc::clone(stream);
        if builder.spawn(move || drop(serve(&theirs, &seat))).is_ok() {
            return;
        }
        RESERVE.report(Shortage::Threads);
        thread::sleep(ACCEPT_PAUSE);
    }
}

/// A connection's place, given back when dropped.
struct Seat {
    shared: Arc<Shared>,
    number: u64,
    place: Arc<Place>,
    over_cap: bool,
}

impl Seat {
    fn take(stream: &Arc<TcpStream>, shared: &Arc<Shared>) -> Seat {
        let now_us = shared.clock.now_us();
        let mut places = lock(&shared.open.places);
        let Arrived { number, place, over_cap, shed } = places.arrive(Arc::clone(stream), now_us);
        let max = places.max(now_us);
        shared.node.connections.store(places.open(), Ordering::Relaxed);
        shared.node.connections_max.store(max, Ordering::Relaxed);
        drop(places);
        if let Some(shed) = shed {
            let _ = shed.shutdown(Shutdown::Both);
            if let Some(more) = shared.open.shed_lines.pass() {
                let set = shared.node.connections_set;
                warning!(
                    "all {max} places for connections are taken (--max-connections {set}): one that has not \
                     shown the token, nor asked anything lately, was closed for a newcomer ({more} more were \
                     not logged)"
                );
            }
        }
        Seat { shared: Arc::clone(shared), number, place, over_cap }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut places = lock(&self.shared.open.places);
        places.leave(self.number);
        self.shared.node.connections.store(places.open(), Ordering::Relaxed);
    }
}

fn serve(stream: &Arc<TcpStream>, seat: &Seat) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_write_timeout(Some(SEND_TIMEOUT))?;
    connection::serve(stream, &seat.shared, &seat.place, seat.over_cap)
}

/// The keeper: waits for shortages and ends them.
pub(crate) fn keep(shared: &Shared) {
    loop {
        let shortage = RESERVE.next_shortage();
        while !relieve(shared, shortage) {
            thread::sleep(KEEPER_PAUSE);
        }
        lock(&shared.open.places).relieved(shared.clock.now_us());
    }
}

/// Closes what can be spared; true when that was enough.
fn relieve(shared: &Shared, shortage: Shortage) -> bool {
    let closed_files = match shortage {
        Shortage::Descriptors => shared.node.reader.close_files(),
        Shortage::Threads => 0,
    };
    let (shed, max) = {
        let now_us = shared.clock.now_us();
        let mut places = lock(&shared.open.places);
        (places.relieve(closed_files, now_us), places.max(now_us))
    };
    shared.node.connections_max.store(max, Ordering::Relaxed);
    shed.iter().for_each(|stream| drop(stream.shutdown(Shutdown::Both)));
    if let Some(more) = shared.open.scarce_lines.pass() {
        let (what, way_out) = match shortage {
            Shortage::Descriptors => (
                "descriptors (files and sockets)",
                "raise the limit (ulimit -n, LimitNOFILE= of systemd)",
            ),
            Shortage::Threads => (
                "threads, or memory for them",
                "raise the limit (ulimit -u, TasksMax= of systemd, memory)",
            ),
        };
        warning!(
            "the system gives this process no more {what}: closed {} connections, those first that have shown \
             nothing, and {closed_files} table files; at most {max} connections are served for now; {way_out} or \
             lower --max-connections ({more} more times were not logged)",
            shed.len()
        );
    }
    match shortage {
        Shortage::Descriptors => RESERVE.refill(),
        Shortage::Threads => true,
    }
}
