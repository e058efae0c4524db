//! Random commands, small enough to meet one another.

use crate::kv::*;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Few keys, so that writes meet.
const KEYS: [&str; 5] = ["a", "b", "ba", "c", "z"];

fn any_key() -> impl Strategy<Value = Vec<u8>> {
    prop::sample::select(&KEYS[..]).prop_map(|key| key.as_bytes().to_vec())
}

/// Values that are numbers, nearly numbers, and not.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        (-3i64..4).prop_map(|n| n.to_string().into_bytes()),
        prop::sample::select(
            &[
                "",
                "text",
                "+1",
                "01",
                "-0",
                "-",
                " 1",
                "9223372036854775806",
                "9223372036854775808"
            ][..]
        )
        .prop_map(|text| text.as_bytes().to_vec()),
    ]
}

/// A write of a few operations, its session and conditions often those of an earlier one.
fn any_write() -> impl Strategy<Value = Write> {
    let stamp = (1u64..12, 0u64..8, 0u64..5).prop_map(|(session, sequence, answered_below)| {
        SessionStamp { session, sequence, answered_below }
    });
    let test =
        prop_oneof![Just(Test::Absent), Just(Test::Present), (1u64..40).prop_map(Test::Revision)];
    let condition = (any_key(), test).prop_map(|(key, test)| Condition { key, test });
    let op = prop_oneof![
        3 => (any_key(), any_value()).prop_map(|(key, value)| Op::Put { key, value }),
        1 => any_key().prop_map(|key| Op::Delete { key }),
        2 => (any_key(), prop_oneof![-2i64..3, any::<i64>()])
            .prop_map(|(key, by)| Op::Increment { key, by }),
        1 => any_key().prop_map(|key| Op::Get { key }),
    ];
    let conditions = prop_oneof![3 => Just(Vec::new()), 1 => vec(condition, 1..3)];
    (option::of(stamp), conditions, vec(op, 0..4)).prop_map(|(stamp, conditions, ops)| Write {
        stamp,
        conditions,
        ops,
    })
}

/// A command of any kind.
pub(super) fn any_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        8 => any_write().prop_map(Command::Write),
        2 => Just(Command::OpenSession),
        1 => (1u64..12).prop_map(|session| Command::CloseSession { session }),
        1 => (1u64..12, 0u64..6)
            .prop_map(|(session, sequence)| Command::ReleaseSession { session, sequence }),
    ]
}
