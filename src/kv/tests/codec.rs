//! The byte forms: one form per value, nothing else taken, and the forms of version 1 for ever.

use super::strategies::any_command;
use crate::kv::bytes::{Input, Malformed};
use crate::kv::codec::*;
use crate::kv::limits::write_bytes;
use crate::kv::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<u8>(), 0..20)
}

/// Numbers of every length.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 0u32..64).prop_map(|(n, shift)| n >> shift)
}

fn found() -> impl Strategy<Value = Found> {
    (bytes(), number()).prop_map(|(value, revision)| Found { value, revision })
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let result = prop_oneof![
        Just(OpResult::Put),
        any::<bool>().prop_map(|existed| OpResult::Deleted { existed }),
        any::<i64>().prop_map(|value| OpResult::Number { value }),
        option::of(found()).prop_map(|found| OpResult::Got { found }),
    ];
    prop_oneof![
        (number(), vec(result, 0..6))
            .prop_map(|(revision, results)| Outcome::Done { revision, results }),
        (any::<u32>(), option::of(number()))
            .prop_map(|(condition, found)| Outcome::ConditionFalse { condition, found }),
        any::<u32>().prop_map(|op| Outcome::NotANumber { op }),
        any::<u32>().prop_map(|op| Outcome::Overflow { op }),
        Just(Outcome::SessionUnknown),
        Just(Outcome::SequenceForgotten),
        number().prop_map(|session| Outcome::SessionOpened { session }),
        Just(Outcome::SessionClosed),
        Just(Outcome::SessionReleased),
        Just(Outcome::SessionsFull),
        Just(Outcome::Malformed),
        any::<u32>().prop_map(|op| Outcome::ResultsTooLarge { op }),
        number().prop_map(|revision| Outcome::ResultsForgotten { revision }),
    ]
}

fn any_query() -> impl Strategy<Value = Query> {
    let range = (
        (bytes(), bytes(), option::of(bytes())),
        (any::<u32>(), any::<u32>()),
        (any::<bool>(), any::<bool>(), any::<bool>()),
    );
    prop_oneof![
        bytes().prop_map(|key| Query::Get { key }),
        range.prop_map(
            |((start, end, after), (limit, bytes), (reverse, keys_only, count_only))| {
                Query::Range(Range {
                    start,
                    end,
                    after,
                    limit,
                    bytes,
                    reverse,
                    keys_only,
                    count_only,
                })
            }
        ),
    ]
}

fn any_reply() -> impl Strategy<Value = Reply> {
    let item = (bytes(), bytes(), number()).prop_map(|(key, value, revision)| Item {
        key,
        value,
        revision,
    });
    prop_oneof![
        option::of(found()).prop_map(Reply::Value),
        (vec(item, 0..6), option::of(bytes()), number(), number()).prop_map(
            |(items, cursor, count, revision)| Reply::Page(Page { items, cursor, count, revision })
        ),
    ]
}

fn encoded(command: &Command) -> Vec<u8> {
    let mut out = Vec::new();
    encode_command(command, &mut out);
    out
}

fn put_with<T>(put: fn(&mut Vec<u8>, &T), value: &T) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, value);
    out
}

/// Reads one value that must fill the bytes.
fn whole<T>(
    take: fn(&mut Input<'_>) -> Result<T, Malformed>,
    bytes: &[u8],
) -> Result<T, Malformed> {
    let mut input = Input(bytes);
    let value = take(&mut input)?;
    input.end("length")?;
    Ok(value)
}

/// What decodes must encode to the same bytes; the rest must be refused without a panic.
fn check_any_bytes(bytes: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(command) = decode_command(bytes) {
        prop_assert_eq!(encoded(&command), bytes);
    }
    if let Ok(outcome) = whole(take_outcome, bytes) {
        prop_assert_eq!(put_with(put_outcome, &outcome), bytes);
    }
    if let Ok(query) = whole(take_query, bytes) {
        prop_assert_eq!(put_with(put_query, &query), bytes);
    }
    if let Ok(reply) = whole(take_reply, bytes) {
        prop_assert_eq!(put_with(put_reply, &reply), bytes);
    }
    Ok(())
}

proptest! {
    #[test]
    fn a_command_comes_back_as_it_went_and_no_part_of_it_is_enough(command in any_command()) {
        let bytes = encoded(&command);
        prop_assert_eq!(decode_command(&bytes), Ok(command.clone()));
        for cut in 0..bytes.len() {
            prop_assert!(decode_command(&bytes[..cut]).is_err(), "cut at {}", cut);
        }
        let longer = [&bytes[..], &[0]].concat();
        prop_assert!(decode_command(&longer).is_err());
        if let Command::Write(write) = &command {
            prop_assert!(bytes.len() <= write_bytes(write));
        }
    }

    #[test]
    fn an_outcome_comes_back_as_it_went_and_no_part_of_it_is_enough(outcome in any_outcome()) {
        let bytes = put_with(put_outcome, &outcome);
        prop_assert_eq!(whole(take_outcome, &bytes), Ok(outcome));
        for cut in 0..bytes.len() {
            prop_assert!(whole(take_outcome, &bytes[..cut]).is_err(), "cut at {}", cut);
        }
    }

    #[test]
    fn a_query_comes_back_as_it_went_and_no_part_of_it_is_enough(query in any_query()) {
        let bytes = put_with(put_query, &query);
        prop_assert_eq!(whole(take_query, &bytes), Ok(query));
        for cut in 0..bytes.len() {
            prop_assert!(whole(take_query, &bytes[..cut]).is_err(), "cut at {}", cut);
        }
    }

    #[test]
    fn a_reply_comes_back_as_it_went_and_no_part_of_it_is_enough(reply in any_reply()) {
        let bytes = put_with(put_reply, &reply);
        prop_assert_eq!(whole(take_reply, &bytes), Ok(reply));
        for cut in 0..bytes.len() {
            prop_assert!(whole(take_reply, &bytes[..cut]).is_err(), "cut at {}", cut);
        }
    }

    #[test]
    fn random_bytes_are_refused_or_are_the_one_form(bytes in vec(any::<u8>(), 0..64)) {
        check_any_bytes(&bytes)?;
    }

    #[test]
    fn a_changed_byte_is_refused_or_gives_the_one_form_of_something_else(
        command in any_command(),
        outcome in any_outcome(),
        query in any_query(),
        reply in any_reply(),
        at: prop::sample::Index,
        to: u8,
    ) {
        for mut bytes in [
            encoded(&command),
            put_with(put_outcome, &outcome),
            put_with(put_query, &query),
            put_with(put_reply, &reply),
        ] {
            let at = at.index(bytes.len());
            bytes[at] = to;
            check_any_bytes(&bytes)?;
        }
    }
}

#[test]
fn the_forms_of_version_1_stay_as_they_are() {
    // These bytes are in logs and on wires: they must decode for ever, and to this.
    let key = |k: &str| k.as_bytes().to_vec();
    let write = |ops| Write { ops, ..Write::default() };
    let commands = [
        (Command::OpenSession, "01"),
        (Command::CloseSession { session: 300 }, "02ac02"),
        (Command::ReleaseSession { session: 300, sequence: 130 }, "03ac02 8201"),
        (
            Command::Write(write(vec![Op::Put { key: key("city"), value: key("Oslo") }])),
            "10 01 04 63697479 04 4f736c6f",
        ),
        (
            Command::Write(Write {
                stamp: Some(SessionStamp { session: 7, sequence: 130, answered_below: 129 }),
                conditions: vec![
                    Condition { key: key("a"), test: Test::Absent },
                    Condition { key: key("b"), test: Test::Present },
                    Condition { key: key("c"), test: Test::Revision(9) },
                ],
                ops: vec![
                    Op::Delete { key: key("a") },
                    Op::Increment { key: key("n"), by: -1 },
                    Op::Get { key: key("n") },
                ],
            }),
            "17 07 8201 8101 03 01 01 61 02 01 62 03 09 01 63 03 02 01 61 03 01 6e 01 04 01 6e",
        ),
        (
            Command::Write(Write {
                stamp: Some(SessionStamp { session: 7, sequence: 130, answered_below: 129 }),
                ops: vec![Op::Increment { key: key("n"), by: -1 }],
                ..Write::default()
            }),
            "11 07 8201 8101 03 01 6e 01",
        ),
        (Command::Write(write(vec![])), "14 00"),
    ];
    for (command, hex) in commands {
        assert_eq!(encoded(&command), from_hex(hex), "{command:?}");
        assert_eq!(decode_command(&from_hex(hex)), Ok(command));
    }
    let found = Found { value: key("v"), revision: 5 };
    let outcomes = [
        (
            Outcome::Done {
                revision: 6,
                results: vec![
                    OpResult::Put,
                    OpResult::Deleted { existed: false },
                    OpResult::Deleted { existed: true },
                    OpResult::Number { value: 1 },
                    OpResult::Got { found: None },
                    OpResult::Got { found: Some(found.clone()) },
                ],
            },
            "01 06 06 01 02 03 04 02 05 06 05 01 76",
        ),
        (Outcome::ConditionFalse { condition: 1, found: None }, "02 01"),
        (Outcome::ConditionFalse { condition: 1, found: Some(8) }, "03 01 08"),
        (Outcome::NotANumber { op: 2 }, "04 02"),
        (Outcome::Overflow { op: 2 }, "05 02"),
        (Outcome::SessionUnknown, "06"),
        (Outcome::SequenceForgotten, "07"),
        (Outcome::SessionOpened { session: 9 }, "08 09"),
        (Outcome::SessionClosed, "09"),
        (Outcome::Malformed, "0a"),
        (Outcome::ResultsTooLarge { op: 3 }, "0b 03"),
        (Outcome::ResultsForgotten { revision: 4 }, "0c 04"),
        (Outcome::SessionReleased, "0d"),
        (Outcome::SessionsFull, "0e"),
    ];
    for (outcome, hex) in outcomes {
        assert_eq!(put_with(put_outcome, &outcome), from_hex(hex), "{outcome:?}");
        assert_eq!(whole(take_outcome, &from_hex(hex)), Ok(outcome));
    }
    let range = Range {
        start: key("a"),
        end: key("z"),
        after: Some(key("c")),
        limit: 10,
        bytes: 1000,
        reverse: true,
        keys_only: true,
        count_only: true,
    };
    let queries = [
        (Query::Get { key: key("city") }, "01 04 63697479"),
        (Query::Range(range), "02 0f 01 61 01 7a 01 63 0a e807"),
        (Query::Range(Range::default()), "02 00 00 00 00 00"),
    ];
    for (query, hex) in queries {
        assert_eq!(put_with(put_query, &query), from_hex(hex), "{query:?}");
        assert_eq!(whole(take_query, &from_hex(hex)), Ok(query));
    }
    let item = Item { key: key("k"), value: key("v"), revision: 5 };
    let page = Page { items: vec![item], cursor: Some(key("k")), count: 1, revision: 6 };
    let replies = [
        (Reply::Value(None), "01"),
        (Reply::Value(Some(found)), "02 05 01 76"),
        (Reply::Page(page), "03 06 01 01 01 6b 01 05 01 6b 01 76"),
        (Reply::Page(Page::default()), "03 00 00 00 00"),
    ];
    for (reply, hex) in replies {
        assert_eq!(put_with(put_reply, &reply), from_hex(hex), "{reply:?}");
        assert_eq!(whole(take_reply, &from_hex(hex)), Ok(reply));
    }
}

#[test]
fn second_forms_and_unknown_kinds_are_refused_by_name() {
    // Each of these would mean something if the reader were lenient.
    let refused = [
        ("", "command kind"),
        ("00", "command kind"),
        ("18 01 01 61 00", "command kind"),
        ("01 00", "command length"),
        ("10 01 01 61 00 00", "command length"),
        ("12 00 02 01 61", "condition count"),
        ("14 01 02 01 61", "operation count"),
        ("14 ffff03 02 01 61", "operation count"),
        ("10 05 01 61", "operation kind"),
        ("10 01 8100 61 00", "key"),
        ("10 01 ffffffffffffffffff01 61", "key"),
    ];
    for (hex, what) in refused {
        assert_eq!(decode_command(&from_hex(hex)), Err(Malformed(what)), "{hex}");
    }
    assert_eq!(whole(take_query, &from_hex("02 10 00 00 00 00")), Err(Malformed("range flags")));
}

#[test]
fn a_plain_put_costs_five_bytes_beside_key_and_value() {
    // The log and the wire carry every write: what is added to a small one matters.
    let op = Op::Put { key: vec![b'k'; 16], value: vec![b'v'; 256] };
    let write = Command::Write(Write { ops: vec![op], ..Write::default() });
    assert_eq!(encoded(&write).len(), 16 + 256 + 5);
}

fn from_hex(hex: &str) -> Vec<u8> {
    let digits: Vec<u32> = hex.chars().filter_map(|c| c.to_digit(16)).collect();
    digits.chunks(2).map(|pair| (pair[0] * 16 + pair[1]) as u8).collect()
}
