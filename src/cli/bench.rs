//! `kontiki bench`: how fast a cluster is, as a client sees it.
//!
//! Each client is a thread with a connection of its own to the leader and has a fixed number of
//! requests open. Without a rate that is a closed loop: the next request is sent when one is
//! answered, and latency is from sending to answer; a cluster that stalls is seen as a long answer of
//! few requests. With a rate every request has its time, and latency counts from that time, however
//! late it is sent: whoever would have come during a stall is counted with it. Writes carry no
//! session, so nothing is sent twice: a request that fails is counted as an error, never hidden in a
//! retry.
//! `--engine` measures the storage engine alone instead (`engine_bench`).

use super::answers::exit_of;
use super::config::{parse_integer, parse_size};
use super::engine_bench;
use super::exit::Exit;
use super::help;
use super::run::{Cluster, cluster_of, cluster_options, usage};
use crate::client::{Client, Connection, Options};
use crate::kv::{Op, Query, Write as KvWrite};
use crate::wire::client::{Call, Class, Consistency, Request};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// Most clients: each is a thread.
const CLIENTS_MAX: u64 = 4096;
/// Most requests that one client has open: as many as a node takes together.
const PIPELINE_MAX: u64 = 1024;
/// Longest run, seconds.
const SECONDS_MAX: u64 = 3600;
/// Highest rate, requests a second.
const RATE_MAX: u64 = 10_000_000;
/// Most keys.
const KEYS_MAX: u64 = 1_000_000_000;
/// Longest value, bytes.
const VALUE_BYTES_MAX: u64 = 8 << 20;
/// Keys of one write when the keys to read are stored first.
const FILL_KEYS: u64 = 64;
/// Bytes of one such write.
const FILL_BYTES: u64 = 256 << 10;
/// Pause of a client after a failure: a cluster without a leader is not to be hammered.
const FAILURE_PAUSE: Duration = Duration::from_millis(5);
/// How long a client waits for the leader to be found again before it looks at the time.
const RECONNECT_WAIT: Duration = Duration::from_millis(500);
/// Stack of a client's thread, bytes: there may be thousands.
const STACK_BYTES: usize = 256 << 10;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mix {
    Put,
    Get,
    /// Of five requests, four read.
    Reads80,
}

impl Mix {
    fn reads(self, random: u64) -> bool {
        match self {
            Mix::Put => false,
            Mix::Get => true,
            Mix::Reads80 => !random.is_multiple_of(5),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Mix::Put => "put",
            Mix::Get => "get",
            Mix::Reads80 => "80r20w",
        }
    }
}

/// What a run is made of.
#[derive(Clone, Copy, Debug)]
struct Load {
    clients: u64,
    time: Duration,
    value_bytes: u64,
    keys: u64,
    pipeline: u64,
    mix: Mix,
    /// Requests a second, all clients together; none for as many as there are answers.
    rate: Option<u64>,
    /// Each key once, in a scattered order.
    once: bool,
    /// The keys to read are there already.
    stored: bool,
}

/// What came of it.
#[derive(Default)]
struct Tally {
    latency: Histogram,
    errors: u64,
    unknown: u64,
    last: Option<String>,
}

/// Runs the subcommand.
pub fn run(args: &[impl AsRef<OsStr>], output: &mut dyn Write, errors: &mut dyn Write) -> Exit {
    if args.iter().any(|word| word.as_ref() == "--engine") {
        return engine_bench::run(args, output, errors);
    }
    let mut options = cluster_options();
    for (name, hint) in [
        ("clients", "N"),
        ("seconds", "S"),
        ("value", "BYTES"),
        ("keys", "N"),
        ("pipeline", "P"),
        ("mix", "put|get|80r20w"),
    ] {
        options.optopt("", name, "", hint);
    }
    options.optopt("", "rate", "", "N");
    options.optflag("", "once", "");
    options.optflag("", "stored", "");
    let matches = match options.parse(args) {
        Ok(matches) => matches,
        Err(fail) => return usage(errors, &fail.to_string()),
    };
    if matches.opt_present("help") {
        let text = help::help(Some("bench")).unwrap_or_default();
        let written = output.write_all(text.as_bytes()).and_then(|()| output.flush());
        return if written.is_ok() { Exit::Done } else { Exit::Unavailable };
    }
    if let Some(word) = matches.free.first() {
        return usage(errors, &format!("unexpected '{word}'"));
    }
    let load = match load_of(&matches) {
        Ok(load) => load,
        Err(why) => return usage(errors, &why),
    };
    match cluster_of(&matches) {
        Ok(cluster) => measure(&cluster, load, output, errors),
        Err((exit, why)) => {
            usage(errors, &why);
            exit
        }
    }
}

fn load_of(matches: &getopts::Matches) -> Result<Load, String> {
    let number = |flag: &str, default: u64, max: u64| match matches.opt_str(flag) {
        None => Ok(default),
        Some(text) => parse_integer(&text, 1, max).map_err(|why| format!("flag --{flag}: {why}")),
    };
    let value_bytes = match matches.opt_str("value") {
        None => 256,
        Some(text) => parse_size(&text)
            .and_then(|n| parse_integer(&n.to_string(), 0, VALUE_BYTES_MAX))
            .map_err(|why| format!("flag --value: {why}"))?,
    };
    let mix = match matches.opt_str("mix").as_deref() {
        None | Some("put") => Mix::Put,
        Some("get") => Mix::Get,
        Some("80r20w") => Mix::Reads80,
        Some(other) => return Err(format!("flag --mix: '{other}' is not put, get or 80r20w")),
    };
    let rate = match matches.opt_present("rate") {
        true => Some(number("rate", 1, RATE_MAX)?),
        false => None,
    };
    Ok(Load {
        rate,
        once: matches.opt_present("once"),
        stored: matches.opt_present("stored"),
        clients: number("clients", 64, CLIENTS_MAX)?,
        time: Duration::from_secs(number("seconds", 5, SECONDS_MAX)?),
        value_bytes,
        keys: number("keys", 100_000, KEYS_MAX)?,
        pipeline: number("pipeline", 1, PIPELINE_MAX)?,
        mix,
    })
}

fn measure(
    cluster: &Cluster,
    mut load: Load,
    output: &mut dyn Write,
    errors: &mut dyn Write,
) -> Exit {
    let mut client = match Client::connect(&cluster.addresses, cluster.options.clone()) {
        Ok(client) => client,
        Err(error) => {
            usage(errors, &error.to_string());
            return exit_of(error.class);
        }
    };
    let leader = client.address().unwrap_or_default().to_owned();
    if load.mix != Mix::Put && !load.stored {
        match fill(&mut client, load) {
            Ok(keys) => load.keys = keys,
            Err(error) => {
                usage(errors, &format!("cannot store the keys to read: {error}"));
                return exit_of(error.class);
            }
        }
    }
    let started = Instant::now();
    let end = started + load.time;
    let mut total = Tally::default();
    std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for number in 0..load.clients {
            let work = move || client_loop(cluster, load, number, end);
            let thread = std::thread::Builder::new().stack_size(STACK_BYTES);
            match thread.spawn_scoped(scope, work) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    total.errors += 1;
                    total.last = Some(format!("cannot start client {number}: {error}"));
                    break;
                }
            }
        }
        for thread in threads {
            match thread.join() {
                Ok(tally) => total.add(tally),
                Err(_) => total.errors += 1,
            }
        }
    });
    let seconds = started.elapsed().as_secs_f64();
    let Load { clients, pipeline, value_bytes, keys, mix, .. } = load;
    let head = format!(
        "{}, {clients} clients, pipeline {pipeline}, {value_bytes}-byte values, {keys} keys, \
         {seconds:.1} s, leader {leader}",
        mix.name()
    );
    let written = write!(output, "{head}\n{}", total.report(seconds)).and_then(|()| output.flush());
    if let Some(last) = total.last {
        usage(errors, &format!("last error: {last}"));
    }
    if written.is_err() || total.latency.count == 0 { Exit::Unavailable } else { Exit::Done }
}

/// Stores the keys that will be read, for no longer than the run itself; gives how many.
fn fill(client: &mut Client, load: Load) -> Result<u64, crate::client::Error> {
    let end = Instant::now() + load.time;
    let per_write = (FILL_BYTES / load.value_bytes.max(1)).clamp(1, FILL_KEYS);
    let writes = (0..load.keys.div_ceil(per_write)).take_while(|_| Instant::now() < end);
    let writes = writes.map(|group| {
        let first = group * per_write;
        let keys = first..(first + per_write).min(load.keys);
        let put = |n| Op::Put { key: key(n), value: value(n, load.value_bytes) };
        KvWrite { ops: keys.map(put).collect(), ..KvWrite::default() }
    });
    let mut failed = None;
    let mut groups = 0;
    client.write_stream(writes, |_, result| match result {
        Ok(_) => {
            groups += 1;
            ControlFlow::Continue(())
        }
        Err(error) => {
            failed.get_or_insert(error);
            ControlFlow::Break(())
        }
    })?;
    failed.map_or(Ok((groups * per_write).clamp(1, load.keys)), Err)
}

fn key(number: u64) -> Vec<u8> {
    format!("bench-{number:010}").into_bytes()
}

/// Bytes that do not compress well, from nothing but a number.
fn value(number: u64, bytes: u64) -> Vec<u8> {
    let mut random = Random(number | 1);
    (0..bytes).map(|_| (random.next() >> 56) as u8).collect()
}

fn client_loop(cluster: &Cluster, load: Load, number: u64, end: Instant) -> Tally {
    let mut tally = Tally::default();
    let value = value(number + 1, load.value_bytes);
    let mut plan = Schedule::new(load, number);
    let mut connection = None;
    let mut open: VecDeque<(u64, Instant)> = VecDeque::new();
    while Instant::now() < end && !(plan.is_over(load) && open.is_empty()) {
        let Some(current) = &mut connection else {
            connection = dial_leader(cluster, end, &mut tally);
            continue;
        };
        let keep = turn(current, load, &mut plan, &value, &mut open, end, &mut tally);
        let keep = keep.unwrap_or_else(|error| {
            // With nothing open there is nothing else that would count it.
            tally.errors += u64::from(open.is_empty());
            tally.last = Some(error.to_string());
            false
        });
        if !keep {
            tally.errors += open.len() as u64;
            tally.unknown += open.len() as u64;
            open.clear();
            connection = None;
            std::thread::sleep(FAILURE_PAUSE);
        }
    }
    tally
}

/// What a client asks for next, and when.
struct Schedule {
    random: Random,
    /// Number of the next key, when each goes once: each client has every so many-th.
    next: u64,
    /// When the next request is due, when there is a rate.
    due: Option<Instant>,
    interval: Duration,
}

impl Schedule {
    fn new(load: Load, client: u64) -> Schedule {
        let interval = load.rate.map_or(0.0, |rate| load.clients as f64 / rate as f64);
        let interval = Duration::from_secs_f64(interval);
        // The clients' turns are spread over one interval.
        let first = interval.mul_f64(client as f64 / load.clients as f64);
        // Neighbouring numbers give unlike streams after a multiplication by a large odd number.
        let random = Random((client + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let due = load.rate.map(|_| Instant::now() + first);
        Schedule { random, next: client, due, interval }
    }

    fn is_over(&self, load: Load) -> bool {
        load.once && self.next >= load.keys
    }

    /// The next request is made: its key.
    fn next_key(&mut self, load: Load) -> u64 {
        self.due = self.due.map(|due| due + self.interval);
        let number = self.next;
        self.next += load.clients;
        if load.once { scattered(number, load.keys) } else { self.random.next() % load.keys }
    }
}

/// The `number`-th of so many keys in an order that is scattered and meets each once: steps of a
/// length that has no divisor in common with the number of keys.
fn scattered(number: u64, keys: u64) -> u64 {
    let common = |mut a: u64, mut b: u64| {
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    let golden = (keys as f64 * 0.618_033_988) as u64;
    let step = (golden.max(1)..).find(|&step| common(step, keys) == 1).unwrap_or(1);
    (u128::from(number) * u128::from(step) % u128::from(keys)) as u64
}

/// Fills the pipeline, then takes what is answered; false when another connection is needed.
fn turn(
    connection: &mut Connection,
    load: Load,
    plan: &mut Schedule,
    value: &[u8],
    open: &mut VecDeque<(u64, Instant)>,
    end: Instant,
    tally: &mut Tally,
) -> Result<bool, crate::client::Error> {
    while (open.len() as u64) < load.pipeline && !plan.is_over(load) {
        let now = Instant::now();
        let due = plan.due.unwrap_or(now);
        if due > now {
            if open.is_empty() {
                std::thread::sleep((due - now).min(end.saturating_duration_since(now)));
                return Ok(true);
            }
            break;
        }
        let key = key(plan.next_key(load));
        let call = if load.mix.reads(plan.random.next() >> 32) {
            Call::Query { query: Query::Get { key }, consistency: Consistency::Linearizable }
        } else {
            let ops = vec![Op::Put { key, value: value.to_vec() }];
            Call::Write(KvWrite { ops, ..KvWrite::default() })
        };
        let sent = connection.send(&mut Request { id: 0, deadline_ms: 0, call })?;
        open.push_back((sent.id, if load.rate.is_some() { due } else { Instant::now() }));
    }
    if open.is_empty() {
        return Ok(true);
    }
    connection.flush(end)?;
    let mut next = connection.receive(end)?;
    let now = Instant::now();
    let (mut refused, mut elsewhere) = (false, false);
    while let Some(response) = next {
        let Some(at) = open.iter().position(|(id, _)| *id == response.id) else {
            let why = response.result.err().map(|failure| failure.to_string());
            tally.last = why.or_else(|| Some("an answer to nothing that is open".to_owned()));
            return Ok(false);
        };
        let started = open.remove(at).map_or(now, |(_, started)| started);
        match response.result {
            Ok(_) => tally.latency.record(now.saturating_duration_since(started)),
            Err(failure) => {
                tally.errors += 1;
                tally.unknown += u64::from(failure.class == Class::Unknown);
                refused = true;
                elsewhere |= failure.class == Class::Unavailable;
                tally.last = Some(failure.to_string());
            }
        }
        next = connection.received()?;
    }
    if refused {
        std::thread::sleep(FAILURE_PAUSE);
    }
    // Perhaps another node leads now; what is open is answered first.
    Ok(!(elsewhere && open.is_empty()))
}

fn dial_leader(cluster: &Cluster, end: Instant, tally: &mut Tally) -> Option<Connection> {
    let left = end.saturating_duration_since(Instant::now()).min(RECONNECT_WAIT);
    let options = Options { timeout: left, ..cluster.options.clone() };
    match Client::connect(&cluster.addresses, options).map(Client::into_connection) {
        Ok(connection) => connection,
        Err(error) => {
            tally.errors += 1;
            tally.last = Some(error.to_string());
            std::thread::sleep(FAILURE_PAUSE);
            None
        }
    }
}

impl Tally {
    fn add(&mut self, other: Tally) {
        self.latency.add(&other.latency);
        self.errors += other.errors;
        self.unknown += other.unknown;
        self.last = other.last.or(self.last.take());
    }

    fn report(&self, seconds: f64) -> String {
        let h = &self.latency;
        let ms = |ns: u64| ns as f64 / 1e6;
        format!(
            "ops/s   {:.0}\np50     {:.3} ms\np99     {:.3} ms\np99.9   {:.3} ms\n\
             p99.99  {:.3} ms\nmax     {:.3} ms\nops     {}\nerrors  {}\nunknown {}\n",
            h.count as f64 / seconds,
            ms(h.quantile(0.5)),
            ms(h.quantile(0.99)),
            ms(h.quantile(0.999)),
            ms(h.quantile(0.9999)),
            ms(h.max),
            h.count,
            self.errors,
            self.unknown,
        )
    }
}

/// Each power of two is cut into so many equal parts: an error of at most one in 64.
const PARTS_BITS: u32 = 6;
const PARTS: u64 = 1 << PARTS_BITS;
const BUCKETS: usize = ((u64::BITS - PARTS_BITS + 1) as usize) << PARTS_BITS;

/// How often each duration occurred, in buckets that grow with it.
struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { buckets: vec![0; BUCKETS], count: 0, max: 0 }
    }
}

impl Histogram {
    fn record(&mut self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket(ns)] += 1;
        self.count += 1;
        self.max = self.max.max(ns);
    }

    fn add(&mut self, other: &Histogram) {
        for (own, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *own += theirs;
        }
        self.count += other.count;
        self.max = self.max.max(other.max);
    }

    /// A duration, nanoseconds, that this part of all did not exceed; 0 of none.
    fn quantile(&self, part: f64) -> u64 {
        let rank = (self.count as f64 * part).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return bucket_end(index).min(self.max);
            }
        }
        self.max
    }
}

/// Values below [`PARTS`] have a bucket each; above, the highest bits of the value choose it.
fn bucket(ns: u64) -> usize {
    if ns < PARTS {
        return ns as usize;
    }
    let shift = ns.ilog2() - PARTS_BITS;
    (((u64::from(shift) + 1) << PARTS_BITS) + ((ns >> shift) - PARTS)) as usize
}

/// The greatest value of a bucket.
fn bucket_end(index: usize) -> u64 {
    let index = index as u64;
    if index < PARTS {
        return index;
    }
    let shift = (index >> PARTS_BITS) - 1;
    let first = (PARTS + index % PARTS) << shift;
    first + ((1 << shift) - 1)
}

/// Xorshift: enough to choose keys.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::tests::fake::{Node, Step, Store, failure};

    #[test]
    fn every_duration_falls_into_a_bucket_that_is_near() {
        // From nothing to the greatest number, at and around each power of two.
        let around = |n: u64| [n.saturating_sub(1), n, n.saturating_add(1)];
        for ns in (0..64).flat_map(|bit| around(1 << bit)).chain([u64::MAX]) {
            let index = bucket(ns);
            assert!(index < BUCKETS, "{ns}");
            let end = bucket_end(index);
            assert!(end >= ns && end - ns <= ns / PARTS, "{ns}: {end}");
            assert!(index == 0 || bucket_end(index - 1) < ns, "{ns}");
        }
    }

    #[test]
    fn quantiles_name_the_duration_that_so_many_stay_below() {
        // A hundred durations from one to a hundred, then none at all.
        let mut h = Histogram::default();
        assert_eq!(h.quantile(0.5), 0);
        for ns in 1..=100 {
            h.record(Duration::from_nanos(ns));
        }
        assert_eq!((h.quantile(0.5), h.quantile(1.0), h.max, h.count), (50, 100, 100, 100));
        let mut twice = Histogram::default();
        twice.add(&h);
        twice.add(&h);
        assert_eq!((twice.quantile(0.5), twice.count), (50, 200));
    }

    fn bench(node: &Node, flags: &[&str]) -> (Exit, String, String) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut args = vec!["-a", &node.address, "--clients", "2", "--seconds", "1"];
        args.extend(flags);
        let exit = run(&args, &mut out, &mut err);
        (exit, String::from_utf8_lossy(&out).into(), String::from_utf8_lossy(&err).into())
    }

    #[test]
    fn a_run_counts_what_was_answered_and_ends_in_time() {
        // A mixed run with a pipeline against a node that refuses now and then.
        let mut count = 0;
        let node = Node::start(1, &Store::new(), move |_| {
            count += 1;
            if count % 200 == 0 { Step::Refuse(failure(Class::Busy, None)) } else { Step::Serve }
        });
        let started = Instant::now();
        let (exit, out, err) =
            bench(&node, &["--mix", "80r20w", "--pipeline", "4", "--keys", "500"]);
        assert_eq!(exit, Exit::Done, "{err}");
        assert!(
            out.starts_with("80r20w, 2 clients, pipeline 4, 256-byte values, 500 keys"),
            "{out}"
        );
        let field = |name: &str| -> f64 {
            let line = out.lines().find_map(|l| l.strip_prefix(name)).unwrap();
            line.split_whitespace().next().unwrap().parse().unwrap()
        };
        assert!(field("ops ") > 100.0 && field("errors") > 0.0, "{out}");
        assert!(field("p50") <= field("p99") && field("p99") <= field("max"), "{out}");
        assert!(err.contains("busy"), "{err}");
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_scattered_order_meets_each_key_once() {
        for keys in [1, 2, 7, 10, 1000, 4096] {
            let mut met: Vec<u64> = (0..keys).map(|n| scattered(n, keys)).collect();
            assert!(keys < 10 || !met.is_sorted());
            met.sort_unstable();
            assert!(met.into_iter().eq(0..keys), "{keys}");
        }
    }

    #[test]
    fn keys_are_written_once_each_at_the_rate_that_was_asked_for() {
        // 300 keys at 1000 a second: a third of a second, not one key more, and none too early.
        let node = Node::good(1, &Store::new());
        let started = Instant::now();
        let (exit, out, err) =
            bench(&node, &["--once", "--rate", "1000", "--keys", "300", "--pipeline", "4"]);
        assert_eq!(exit, Exit::Done, "{err}");
        assert!(out.contains("\nops     300\nerrors  0\n"), "{out}");
        assert!(started.elapsed() >= Duration::from_millis(290), "{out}");
    }

    #[test]
    fn a_wrong_flag_is_named() {
        // Nothing is measured by mistake.
        let node = Node::good(1, &Store::new());
        for (flags, why) in [
            (&["--mix", "gets"][..], "flag --mix: 'gets' is not put, get or 80r20w"),
            (&["--keys", "0"], "flag --keys: '0' is not a whole number from 1 to 1000000000"),
            (&["now"], "unexpected 'now'"),
        ] {
            let (exit, _, err) = bench(&node, flags);
            assert_eq!((exit, err.trim_end()), (Exit::Usage, format!("kontiki: {why}").as_str()));
        }
    }
}
