//! What answers hold until the client has taken them.

use super::*;
use crate::api::budget::{Budget, Share};
use crate::kv::Range;

/// More answers than are held at once leave in several writes, in order; a page is not read before
/// those in front of it are written.
#[test]
fn answers_are_written_as_they_are_made() {
    let mut client = Driver::native(state());
    let count = 3 * OUT_BYTES_MAX / BIG_VALUE_BYTES;
    let read = |id| request(id as u64, get(BIG_KEY, Consistency::Stale));
    let bytes: Vec<u8> = (1..=count).flat_map(read).collect();
    let space = client.connection.space();
    space[..bytes.len()].copy_from_slice(&bytes);
    client.connection.filled(bytes.len());
    let mut writes = 0;
    while let Step::Write(bytes) = client.connection.next(0) {
        assert!(bytes.len() < OUT_BYTES_MAX + BIG_VALUE_BYTES + 100);
        client.out.extend_from_slice(&bytes);
        client.connection.written(bytes);
        writes += 1;
    }
    assert!(writes >= 3);
    let ids: Vec<u64> = client.responses().iter().map(|r| r.id).collect();
    assert_eq!(ids, (1..=count as u64).collect::<Vec<_>>());
}

/// A node whose unsent answers may hold so much in all.
fn state_with_room(bytes: usize) -> Arc<NodeState> {
    let (state, _) = node_of_two::<u64>("host:2", 10, 0);
    Arc::new(NodeState { answers: Budget::new(bytes, 1000), ..state })
}

fn class_of(response: &Response) -> Option<Class> {
    response.result.as_ref().err().map(|failure| failure.class)
}

/// Other clients do not take their answers, and those hold all they may. A read that finds something large is busy, in
/// both dialects, and says which bound that is; small ones and everything else go on. When the others are gone, or have
/// taken what they asked for, large ones are answered again, and nothing is left behind.
#[test]
fn a_read_that_finds_no_room_for_its_answer_is_busy() {
    let state = state_with_room(BIG_VALUE_BYTES);
    let mut others = Share::new(&state.answers);
    assert!(others.hold(3000));
    let mut native = Driver::native(Arc::clone(&state));
    let reads = [get(BIG_KEY, Consistency::Stale), get(BIG_KEY, Consistency::Linearizable)];
    let calls = reads.into_iter().chain([get(b"none", Consistency::Stale), put("a")]);
    let calls: Vec<u8> = (1..).zip(calls).flat_map(|(id, call)| request(id, call)).collect();
    native.send(&calls);
    let responses = native.responses();
    let classes: Vec<_> = responses.iter().map(class_of).collect();
    assert_eq!(classes, [Some(Class::Busy), Some(Class::Busy), None, None]);
    let said = &responses[0].result.as_ref().unwrap_err().message;
    assert!(said.starts_with("busy: ") && said.contains("102400 bytes"), "{said}");
    let mut text = Driver::new(Arc::clone(&state), false);
    text.send(b"GET big\r\nGET none\r\nSET a 1\r\n");
    let told = text.text();
    let start = told.chars().take(100).collect::<String>();
    assert!(
        told.starts_with("-TRYAGAIN busy: ") && told.ends_with("\r\n$-1\r\n+OK\r\n"),
        "{start}"
    );
    assert_eq!(state.answers.held(), 2000, "what the others hold");
    others.release();
    native.send(&calls);
    assert!(native.responses().iter().all(|response| response.result.is_ok()));
    text.send(b"GET big\r\n");
    assert_eq!(text.text().len(), BIG_VALUE_BYTES + "$102400\r\n\r\n".len());
    assert_eq!(state.answers.held(), 0);
}

/// What is made for a client and not written yet is held, whatever becomes of the client.
#[test]
fn an_answer_is_held_until_it_is_written() {
    let state = state_with_room(1 << 20);
    let mut client = Driver::native(Arc::clone(&state));
    let bytes: Vec<u8> =
        (1..=20).flat_map(|id| request(id, get(BIG_KEY, Consistency::Stale))).collect();
    let space = client.connection.space();
    space[..bytes.len()].copy_from_slice(&bytes);
    client.connection.filled(bytes.len());
    let Step::Write(bytes) = client.connection.next(0) else { panic!() };
    let held = state.answers.held();
    assert!(bytes.len() >= held && held > bytes.len() - 4000, "{held} of {}", bytes.len());
    drop(client);
    assert_eq!(state.answers.held(), 0);
}

/// A write that reads is done before it is known what its answer holds. So none is begun without room for all it may
/// find; where others took that meanwhile, it is answered as done, without its results.
#[test]
fn a_write_that_reads_needs_room_for_all_it_may_find() {
    use crate::kv::machine::RESULT_BYTES_MAX;
    let reads = |id| {
        let ops = vec![Op::Get { key: BIG_KEY.to_vec() }];
        request(id, Call::Write(Write { ops, ..Write::default() }))
    };
    let found = |_: &Request| {
        let found = Some(Found { value: vec![b'v'; BIG_VALUE_BYTES], revision: 1 });
        let results = vec![OpResult::Got { found }];
        Answer::Write(Verdict::Applied(Outcome::Done { revision: 9, results }))
    };
    let state = state_with_room(RESULT_BYTES_MAX);
    let mut others = Share::new(&state.answers);
    let mut client = Driver::native(Arc::clone(&state));
    client.answer = found;
    assert!(others.hold(1001));
    client.send(&reads(1));
    assert_eq!(class_of(&client.responses()[0]), Some(Class::Busy));
    assert!(client.sets.is_empty(), "it was not put to the replica");
    others.release();
    client.send(&reads(2));
    let told = client.responses().remove(0).result;
    assert!(matches!(told, Ok(Reply::Outcome(Outcome::Done { revision: 9, .. }))), "{told:?}");
    // The room goes while the write is under way.
    let bytes = reads(3);
    let space = client.connection.space();
    space[..bytes.len()].copy_from_slice(&bytes);
    client.connection.filled(bytes.len());
    let Step::Submit { requests, .. } = client.connection.next(0) else { panic!() };
    assert!(others.hold(RESULT_BYTES_MAX));
    client.connection.answered(requests.iter().map(|(_, r)| found(r)).collect(), 0);
    client.send(b"");
    let told = client.responses().remove(0).result;
    assert_eq!(told, Ok(Reply::Outcome(Outcome::ResultsForgotten { revision: 9 })));
}

/// A client counts everything three times, pages once, and reads a key. It is looked for between any two pieces of that, and
/// not for a single one; and each count is what it is in one piece.
#[test]
fn much_work_is_interrupted_to_look_for_the_client() {
    let range = |count_only| Query::Range(Range { count_only, ..Range::default() });
    let call = |query| Call::Query { query, consistency: Consistency::Stale };
    let mut alone = Driver::native(state());
    alone.send(&request(1, call(range(true))));
    assert_eq!((alone.checks, alone.responses().len()), (0, 1), "one piece of work");
    let calls = [range(true), range(true), range(false), Query::Get { key: b"a".to_vec() }];
    let calls = calls.into_iter().chain([range(true)]);
    let calls: Vec<u8> =
        (1..).zip(calls).flat_map(|(id, query)| request(id, call(query))).collect();
    let mut client = Driver::native(state());
    client.send(&calls);
    assert_eq!(client.checks, 3, "between the four that may be long");
    let count = |response: &Response| match &response.result {
        Ok(Reply::Reply(KvReply::Page(page))) => page.count,
        other => panic!("{other:?}"),
    };
    let responses = client.responses();
    assert_eq!([0, 1, 2, 4].map(|at| count(&responses[at])), [1; 4]);
}

/// A set takes longer than its requests may. Each deadline is looked at when its turn comes: what is too late is said so,
/// and costs nothing. A text client has named none: its reads are answered however slowly it takes them.
#[test]
fn deadlines_are_looked_at_when_the_turn_comes() {
    let mut client = Driver::native(state());
    let mut bytes = Vec::new();
    let page =
        Call::Query { query: Query::Range(Range::default()), consistency: Consistency::Stale };
    let read = |key: &[u8]| get(key, Consistency::Stale);
    let calls = [(10, read(BIG_KEY)), (10, page.clone()), (0, page), (0, read(b"none"))];
    for (id, (deadline_ms, call)) in (1..).zip(calls) {
        put_request(&mut bytes, &wire::Request { id, deadline_ms, call });
    }
    let answers_at = |client: &mut Driver, now_us: u64| {
        let space = client.connection.space();
        space[..bytes.len()].copy_from_slice(&bytes);
        client.connection.filled(bytes.len());
        let mut at_us = 0;
        loop {
            match client.connection.next(at_us) {
                // They have arrived, and its thread sleeps in between.
                Step::Check => at_us = now_us,
                Step::Write(bytes) => {
                    client.out.extend_from_slice(&bytes);
                    client.connection.written(bytes);
                }
                Step::Read { .. } => break,
                other => panic!("{other:?}"),
            }
        }
        client.responses().iter().map(class_of).collect::<Vec<_>>()
    };
    assert_eq!(answers_at(&mut client, 9_999), [None; 4]);
    let late = Some(Class::Unavailable);
    assert_eq!(answers_at(&mut client, 10_000), [None, None, None, None], "none was left");
    assert_eq!(answers_at(&mut client, 5_000_000), [None, None, late, None]);
}

/// While three counts are under way another request arrives, in two pieces, and is read ahead to see whether the client is
/// still there. It is answered behind them, though no more bytes come.
#[test]
fn what_is_read_ahead_is_answered_in_its_turn() {
    let query = || Query::Range(Range { count_only: true, ..Range::default() });
    let call = || Call::Query { query: query(), consistency: Consistency::Stale };
    let bytes: Vec<u8> = (1..4).flat_map(|id| request(id, call())).collect();
    let late = request(4, call());
    let mut pieces = late.chunks(20);
    let mut client = Driver::native(state());
    let space = client.connection.space();
    space[..bytes.len()].copy_from_slice(&bytes);
    client.connection.filled(bytes.len());
    loop {
        match client.connection.next(0) {
            Step::Check => {
                let Some(piece) = pieces.next() else { continue };
                let space = client.connection.space_ahead().expect("there is room");
                space[..piece.len()].copy_from_slice(piece);
                client.connection.filled(piece.len());
            }
            Step::Write(bytes) => {
                client.out.extend_from_slice(&bytes);
                client.connection.written(bytes);
            }
            Step::Read { .. } => match pieces.next() {
                None => break,
                Some(piece) => {
                    let space = client.connection.space();
                    space[..piece.len()].copy_from_slice(piece);
                    client.connection.filled(piece.len());
                }
            },
            other => panic!("{other:?}"),
        }
    }
    let ids: Vec<u64> = client.responses().iter().map(|r| r.id).collect();
    assert_eq!(ids, [1, 2, 3, 4]);
}
