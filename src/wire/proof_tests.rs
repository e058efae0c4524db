//! Handshakes with and without the right secrets, and what an attacker can make of what it sees.

use super::frame::FRAME_HEADER_BYTES;
use super::handshake::{Hello, Lane, Reject, RejectCode, Remembered, Role, Welcome, put_hello};
use super::proof::*;

const SECRET: Secret = Secret { bytes: [7; SECRET_BYTES], sealed: false };
const SEALED: Secret = Secret { sealed: true, ..SECRET };
const OTHER: Secret = Secret { bytes: [8; SECRET_BYTES], sealed: true };

fn peer() -> Hello {
    let (cluster, from, to, identity, to_identity) = (7, 1, 2, 11, 12);
    let address = "host:1".to_string();
    let role = Role::Peer;
    Hello { role, cluster, from, to, identity, to_identity, address, ..Hello::of_client(7) }
}

fn keys(token: &[u8], secret: Secret) -> Keys {
    Keys { token: token.to_vec(), secret: Some(secret) }
}

fn says(token: &[u8], secret: Secret) -> Greeting {
    Greeting { hello: peer(), keys: keys(token, secret), offers_in: None }
}

fn welcome() -> Welcome {
    Welcome {
        version: 3,
        cluster: 7,
        node: 2,
        identity: 12,
        leader: 0,
        leader_address: String::new(),
        remembered: Remembered::default(),
    }
}

fn body(frame: &[u8]) -> &[u8] {
    &frame[FRAME_HEADER_BYTES..]
}

fn written(step: Result<Dialing, crate::raft::codec::Malformed>) -> Vec<u8> {
    match step {
        Ok(Dialing::Write(frame)) => frame,
        other => panic!("{other:?}"),
    }
}

/// Hello, Challenge and Proof of one handshake, with the two sides.
fn begun(greeting: Greeting) -> (Dialer, Listener, [Vec<u8>; 3]) {
    let (mut dialer, hello) = Dialer::new(greeting, [1; NONCE_BYTES]);
    let (listener, challenge) = Listener::new(body(&hello), &[2; NONCE_BYTES]).unwrap();
    let proof = written(dialer.heard(body(&challenge)));
    (dialer, listener, [hello, challenge, proof])
}

/// A whole handshake that is answered by a Welcome.
fn whole(greeting: Greeting, token: &[u8], own: Secret) -> Result<(Presented, Answered), Reject> {
    let (mut dialer, listener, [.., proof]) = begun(greeting);
    let presented = listener.proof(body(&proof), token)?;
    match dialer.heard(body(&presented.answer(&Ok(welcome()), Some(&own)))) {
        Ok(Dialing::Over(answered)) => Ok((presented, *answered)),
        other => panic!("{other:?}"),
    }
}

/// Each side learns exactly what the other one knows: token, secret, and whether that is sealed.
#[test]
fn each_side_learns_what_the_other_one_knows() {
    let shown = |theirs, ours: Secret| {
        let (presented, answered) = whole(says(b"token", theirs), b"token", ours).unwrap();
        assert_eq!(answered.answer, Ok(welcome()));
        let to_listener = presented.proven(&ours);
        (to_listener.member, to_listener.sealed, answered.proven.member, answered.proven.sealed)
    };
    assert_eq!(shown(SECRET, SECRET), (true, false, true, false));
    assert_eq!(shown(SEALED, SECRET), (true, true, true, false));
    assert_eq!(shown(SECRET, SEALED), (true, false, true, true));
    assert_eq!(shown(OTHER, SEALED), (false, false, false, false));
    assert_eq!(shown(OTHER, OTHER), (true, true, true, true));
}

/// Without the token there is no way in, and what is told says why.
#[test]
fn who_does_not_know_the_token_is_told() {
    let refused = |token: &[u8], ours: &[u8]| {
        let reject = whole(says(token, SECRET), ours, SECRET).unwrap_err();
        assert_eq!(reject.code, RejectCode::Token);
        reject.message
    };
    assert_eq!(refused(b"", b"token"), "the token is missing");
    assert_eq!(refused(b"tokem", b"token"), "the token is wrong");
    assert!(refused(b"token", b"").contains("without --token-file"));
    assert!(whole(says(b"", SECRET), b"", SECRET).is_ok());
}

/// While a token is changed each side knows one or both: any that both know will do.
#[test]
fn two_tokens_are_taken_during_a_change() {
    let meet = |theirs: &[u8], ours: &[u8]| whole(says(theirs, SECRET), ours, SECRET).is_ok();
    for both in [&b"new\nold"[..], b"old\nnew"] {
        for one in [&b"new"[..], b"old", both] {
            assert!(meet(both, one) && meet(one, both), "{one:?}");
        }
        assert!(!meet(both, b"third") && !meet(b"third", both) && !meet(b"", both));
        assert!(is_token(b"old", both) && is_token(b"new", both));
        assert!(!is_token(both, both) && !is_token(b"", both));
    }
    assert!(!meet(b"new", b"old"));
    assert!(is_token(b"", b""));
}

/// A leader's offer comes out as what it has, under the token that both know; nobody else makes one of it.
#[test]
fn an_offer_is_what_the_leader_holds() {
    let offered = |greeting: Greeting, token: &[u8]| {
        let (_, listener, [.., proof]) = begun(greeting);
        listener.proof(body(&proof), token).unwrap().offer()
    };
    let leads = Greeting { offers_in: Some(5), ..says(b"token", SECRET) };
    assert_eq!(offered(leads.clone(), b"token"), Some((5, SECRET.bytes)));
    assert_eq!(offered(says(b"token", SECRET), b"token"), None);
    let sealed = Greeting { keys: keys(b"token", SEALED), ..leads.clone() };
    assert_eq!(offered(sealed, b"token"), None, "a sealed one is not handed out");
    // Masked with the first of two tokens, of which the other side knows the second: it takes nothing for it.
    let two = Greeting { keys: keys(b"new\ntoken", SECRET), ..leads };
    assert_eq!(offered(two.clone(), b"token"), None);
    assert_eq!(offered(two, b"new\ntoken"), Some((5, SECRET.bytes)));
}

/// A handshake was recorded. Played again it opens nothing: the other side's number is another one.
#[test]
fn a_recorded_handshake_is_worth_nothing() {
    let (_, listener, [hello, _, proof]) = begun(says(b"token", SECRET));
    assert!(listener.proof(body(&proof), b"token").is_ok());
    let (again, _) = Listener::new(body(&hello), &[3; NONCE_BYTES]).unwrap();
    assert_eq!(again.proof(body(&proof), b"token").unwrap_err().code, RejectCode::Token);
    // Nor to the dialer, of the answer.
    let (_, listener, [.., proof]) = begun(says(b"token", SECRET));
    let presented = listener.proof(body(&proof), b"token").unwrap();
    let answer = presented.answer(&Ok(welcome()), Some(&SECRET));
    let (mut later, hello) = Dialer::new(says(b"token", SECRET), [4; NONCE_BYTES]);
    let (_, challenge) = Listener::new(body(&hello), &[2; NONCE_BYTES]).unwrap();
    written(later.heard(body(&challenge)));
    assert!(later.heard(body(&answer)).is_err());
}

/// Whoever is dialed gives the dialer's own codes back, or the codes of a handshake that it has dialed
/// itself with the dialer's number: nothing is proven by that.
#[test]
fn a_reflected_code_proves_nothing() {
    let (mut dialer, _, [_, _, proof]) = begun(says(b"token", SEALED));
    let proof = body(&proof);
    let mut answer = Vec::new();
    super::handshake::put_answer_fields(&mut answer, &Err(removed()));
    answer.extend_from_slice(&proof[2..34]);
    answer.push(1);
    answer.extend_from_slice(&proof[proof.len() - 64..proof.len() - 32]);
    let Ok(Dialing::Over(answered)) = dialer.heard(&answer) else { panic!("it decodes") };
    assert_eq!(answered.proven, Proven::default());
    // It challenges a member with the number with which it was challenged.
    let (_, challenge) =
        Listener::new(body(&begun(says(b"token", SEALED)).2[0]), &[1; 32]).unwrap();
    let (mut member, _) = Dialer::new(says(b"token", SEALED), [9; NONCE_BYTES]);
    let theirs = written(member.heard(body(&challenge)));
    let (listener, _) =
        Listener::new(body(&begun(says(b"token", SEALED)).2[0]), &[1; NONCE_BYTES]).unwrap();
    assert!(listener.proof(body(&theirs), b"token").is_err());
}

fn removed() -> Reject {
    Reject { code: RejectCode::Removed, message: "so it is".to_string() }
}

/// A proof counts for the Hello that it was made for, and for nothing else: not for another purpose, not in
/// another name, not to another member.
#[test]
fn a_proof_is_bound_to_all_that_hello_says() {
    let (_, _, [_, _, proof]) = begun(says(b"token", SEALED));
    let hello = Hello { nonce: [1; NONCE_BYTES], ..peer() };
    let others = [
        Hello { role: Role::Snapshot, ..hello.clone() },
        Hello { lane: Lane::Bulk, ..hello.clone() },
        Hello { cluster: 8, ..hello.clone() },
        Hello { from: 3, ..hello.clone() },
        Hello { to: 3, ..hello.clone() },
        Hello { identity: 13, ..hello.clone() },
        Hello { to_identity: 13, ..hello.clone() },
        Hello { address: "host:9".to_string(), ..hello.clone() },
        Hello { nonce: [5; NONCE_BYTES], ..hello.clone() },
        Hello { remembered: Remembered { term: 9, ..hello.remembered }, ..hello.clone() },
    ];
    let passes = |hello: &Hello| {
        let mut frame = Vec::new();
        put_hello(&mut frame, hello);
        let (listener, _) = Listener::new(body(&frame), &[2; NONCE_BYTES]).unwrap();
        listener.proof(body(&proof), b"token").is_ok()
    };
    assert!(passes(&hello));
    for other in others {
        assert!(!passes(&other), "{other:?}");
    }
}

/// One changed bit, anywhere behind the kinds of proof and answer, is noticed: no field can be exchanged for
/// another one on the way.
#[test]
fn every_bit_of_proof_and_answer_counts() {
    let offering = Greeting { offers_in: Some(5), ..says(b"token", SECRET) };
    let (_, _, [_, _, proof]) = begun(offering.clone());
    for at in 2..body(&proof).len() {
        let mut changed = body(&proof).to_vec();
        changed[at] ^= 1;
        let (_, listener, _) = begun(offering.clone());
        assert!(listener.proof(&changed, b"token").is_err(), "byte {at}");
    }
    let (_, listener, [.., proof]) = begun(offering.clone());
    let presented = listener.proof(body(&proof), b"token").unwrap();
    let answer = presented.answer(&Err(removed()), Some(&SECRET));
    for at in 1..body(&answer).len() {
        let mut changed = body(&answer).to_vec();
        changed[at] ^= 1;
        let (mut dialer, ..) = begun(offering.clone());
        if let Ok(Dialing::Over(answered)) = dialer.heard(&changed) {
            assert!(!answered.proven.token && !answered.proven.member, "byte {at}");
        }
    }
}

/// Nothing that goes over the wire, or to a log, has the token or the secret in it.
#[test]
fn neither_secret_is_ever_shown() {
    let token = b"a token of some length";
    let greeting = Greeting { offers_in: Some(5), ..says(token, SECRET) };
    let (mut dialer, listener, frames) = begun(greeting.clone());
    let presented = listener.proof(body(&frames[2]), token).unwrap();
    let answer = presented.answer(&Ok(welcome()), Some(&SECRET));
    let joined = presented.pad().mask(&SECRET.bytes);
    let all = [&frames.concat()[..], &answer, &joined].concat();
    let has = |what: &[u8]| all.windows(what.len()).any(|window| window == what);
    assert!(!has(&token[..8]) && !has(&SECRET.bytes[..8]));
    let said = format!("{greeting:?} {dialer:?} {presented:?} {:?}", presented.pad());
    let shown = dialer.heard(body(&answer)).unwrap();
    let said = format!("{said} {shown:?}");
    assert!(
        !said.contains("97, 32, 116") && !said.contains("7, 7, 7") && !said.contains("a token of")
    );
    let Dialing::Over(answered) = shown else { panic!("it is over") };
    assert_eq!(answered.pad.mask(&joined), SECRET.bytes, "both ends have the same pad");
}
