//! Challenge and answer: both sides of a handshake show what they know, and neither shows the secret itself.
//!
//! ```text
//! dialer                                  listener
//!   Hello, its random number  ──────────>
//!                             <──────────  Challenge: its random number
//!   Proof                     ──────────>
//!                             <──────────  Welcome or Reject, with the listener's proof
//! ```
//!
//! There are two secrets. Clients and nodes know the *token*, which a person configures. Only members know
//! the *members' secret*, 32 random bytes in their data directories. A proof is an HMAC-SHA-256, keyed with
//! the secret, over a label, which differs between dialer and listener and between the two secrets, and the
//! hash of everything that was said on this connection so far. From that follows:
//!
//! | threat | why it fails |
//! |---|---|
//! | a stranger without the token | has no proof, and learns none: the dialer proves itself first |
//! | a client, which has the token and can read every id and identity | has no members' secret |
//! | whoever binds the port of a dead peer | sees codes over its own random number, which prove nothing elsewhere |
//! | a recorded handshake, played again | the other side's random number is another one |
//! | a challenge that is reflected to its maker | the labels of dialer and listener differ |
//! | a proof that is used for another purpose | role, lane, cluster, ids and identities are in Hello, which is hashed |
//! | a proof that is handed on to another member | Hello names the node that is meant |
//!
//! Who relays every byte between two nodes passes, as a router does: frames behind the handshake carry no
//! codes, and nothing is encrypted. Who sees a handshake can try tokens at leisure, so a token has to be
//! long and random. Beyond a trusted network use a tunnel.
//!
//! **How the members' secret comes about** is decided by [`crate::node::Peers`]; here is what carries it. As
//! long as it is not *sealed*, a leader offers its own to members in its proof, masked with a pad that is made
//! of the token and the hash. Once it is sealed nobody offers or takes one any more.
//!
//! During a change of the token a side knows two. A dialer gives a code for each, and the listener answers with
//! the one that both know, so that no round trip is added.
//!
//! docs/protocol.md, "Handshake", is the specification. Left out: sockets, and where random numbers come from.

use super::frame::{FRAME_HEADER_BYTES, HANDSHAKE_FRAME_MAX, kind, put_frame};
use super::handshake::{
    Hello, PROTOCOL_VERSIONS, Reject, RejectCode, Welcome, common_version, put_answer_fields,
    put_hello, take_answer_fields, take_hello,
};
use super::hmac::{HASH_BYTES, Hash, equal, hmac, sha256};
use crate::raft::Term;
use crate::raft::codec::{Input, Malformed};
use std::fmt;

/// Bytes of a random number of a handshake.
pub const NONCE_BYTES: usize = 32;
/// A random number, used in one handshake only.
pub type Nonce = [u8; NONCE_BYTES];
/// Bytes of the members' secret.
pub const SECRET_BYTES: usize = 32;

/// Tokens that a side may know at a time: the new one and the old one.
pub const TOKENS_MAX: usize = 2;
/// Between two tokens of a set: no token has it, for each is one line.
const BETWEEN_TOKENS: u8 = b'\n';

/// What the codes are about, before anything else that is hashed.
const DIALER_TOKEN: &[u8] = b"kontiki dialer token";
const DIALER_MEMBER: &[u8] = b"kontiki dialer member";
const LISTENER_TOKEN: &[u8] = b"kontiki listener token";
const LISTENER_MEMBER: &[u8] = b"kontiki listener member";
const OFFER_PAD: &[u8] = b"kontiki offer";
const JOINED_PAD: &[u8] = b"kontiki joined";
/// What names a secret in a recording.
const PSEUDONYM: &[u8] = b"kontiki recording";

/// The bits of a member's standing.
const SEALED: u8 = 1;
const OFFERS: u8 = 2;

/// Standing, term, code, masked secret.
const MEMBER_BYTES: usize = 1 + 8 + HASH_BYTES + SECRET_BYTES;
const _: () = assert!(1 + 1 + TOKENS_MAX * HASH_BYTES + MEMBER_BYTES <= HANDSHAKE_FRAME_MAX);

/// The tokens of a set, which is how it is configured: one line each. An empty set is one empty token,
/// which everybody knows.
pub fn tokens(set: &[u8]) -> impl Iterator<Item = &[u8]> {
    set.split(|&byte| byte == BETWEEN_TOKENS).take(TOKENS_MAX)
}

/// Whether what a client shows in the clear is a token of that set.
pub fn is_token(shown: &[u8], set: &[u8]) -> bool {
    tokens(set).fold(false, |found, token| found | equal(shown, token))
}

/// The members' secret as a node holds it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Secret {
    /// The secret.
    pub bytes: [u8; SECRET_BYTES],
    /// All members hold it: it is the cluster's for good, and whoever does not show it is no member.
    pub sealed: bool,
}

/// The secret never reaches a log.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("sealed", &self.sealed).finish_non_exhaustive()
    }
}

/// What a side knows.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys {
    /// The set of [`tokens`].
    pub token: Vec<u8>,
    /// Of a node: the members' secret.
    pub secret: Option<Secret>,
}

/// Neither secret reaches a log.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Keys { token, secret } = self;
        let mut shown = f.debug_struct("Keys");
        shown.field("token_bytes", &token.len()).field("secret", secret).finish()
    }
}

impl Secret {
    /// A name that says which secret it is and not what it is: it stands for the secret in a recording of what a node
    /// did.
    pub fn pseudonym(&self) -> Secret {
        Secret { bytes: pseudonym(&self.bytes), sealed: self.sealed }
    }
}

fn pseudonym(secret: &[u8; SECRET_BYTES]) -> [u8; SECRET_BYTES] {
    hmac(secret, &[PSEUDONYM])
}

impl Keys {
    /// Those of a client.
    pub fn of_client(token: &[u8]) -> Keys {
        Keys { token: token.to_vec(), secret: None }
    }
}

fn code(key: &[u8], label: &[u8], said: &Hash, rest: &[&[u8]]) -> Hash {
    let mut pieces: Vec<&[u8]> = vec![label, said];
    pieces.extend_from_slice(rest);
    hmac(key, &pieces)
}

fn masked(secret: &[u8; SECRET_BYTES], pad: &Hash) -> [u8; SECRET_BYTES] {
    std::array::from_fn(|i| secret[i] ^ pad[i])
}

fn take_32(input: &mut Input<'_>, what: &'static str) -> Result<[u8; 32], Malformed> {
    input.bytes(32, what)?.try_into().map_err(|_| Malformed(what))
}

/// Masks or unmasks what a node that joins is told: both ends of a connection have one.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinedPad(Hash);

impl JoinedPad {
    fn of(token: &[u8], said: &Hash) -> JoinedPad {
        JoinedPad(code(token, JOINED_PAD, said, &[]))
    }

    /// What is sent for the secret, or the secret of what was sent.
    pub fn mask(&self, secret: &[u8; SECRET_BYTES]) -> [u8; SECRET_BYTES] {
        masked(secret, &self.0)
    }
}

impl fmt::Debug for JoinedPad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinedPad").finish_non_exhaustive()
    }
}

// ---- the dialer ----

/// What the other side has shown of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proven {
    /// It knows a token of this side; where there is none everybody does.
    pub token: bool,
    /// It holds the members' secret that this side holds.
    pub member: bool,
    /// And says that this is sealed.
    pub sealed: bool,
}

/// The answer to a Hello.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Welcome or Reject. A Welcome comes from who knows the token.
    pub answer: Result<Welcome, Reject>,
    /// What else that one has shown.
    pub proven: Proven,
    /// For a client that joins.
    pub pad: JoinedPad,
}

impl Answered {
    /// As a recording tells it; nobody joins by it.
    pub fn recorded(answer: Result<Welcome, Reject>, proven: Proven) -> Answered {
        Answered { answer, proven, pad: JoinedPad([0; HASH_BYTES]) }
    }

    /// Whether a node with those keys uses the connection.
    ///
    /// # Errors
    /// Why not, for a person.
    pub fn is_let_in(&self, keys: &Keys) -> Result<(), String> {
        if let Err(reject) = &self.answer {
            return Err(reject.message.clone());
        }
        match keys.secret.is_some_and(|secret| secret.sealed) && !self.proven.member {
            true => Err("who answers at its address does not hold the members' secret".to_string()),
            false => Ok(()),
        }
    }
}

/// What a dialer does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dialing {
    /// Write this frame.
    Write(Vec<u8>),
    /// It is over.
    Over(Box<Answered>),
}

/// What a dialer has to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Who it is and whom it means; its random number is set when it is said.
    pub hello: Hello,
    /// What it knows.
    pub keys: Keys,
    /// It leads in this term and offers the members' secret that it holds.
    pub offers_in: Option<Term>,
}

impl Greeting {
    /// That of a client.
    pub fn of_client(hello: Hello, token: &[u8]) -> Greeting {
        Greeting { hello, keys: Keys::of_client(token), offers_in: None }
    }
}

/// The dialing side of one handshake.
#[derive(Debug)]
pub struct Dialer {
    keys: Keys,
    is_node: bool,
    offers_in: Option<Term>,
    /// The hash of what was said: of Hello at first, with Challenge and Proof later.
    said: Said,
}

#[derive(Debug)]
enum Said {
    Hello(Vec<u8>),
    Proof(Hash),
}

impl Dialer {
    /// Begins, with a number that is random and new; gives the Hello's frame.
    pub fn new(greeting: Greeting, nonce: Nonce) -> (Dialer, Vec<u8>) {
        let Greeting { hello, keys, offers_in } = greeting;
        let hello = Hello { nonce, ..hello };
        let mut frame = Vec::new();
        put_hello(&mut frame, &hello);
        let body = frame[FRAME_HEADER_BYTES..].to_vec();
        let (is_node, said) = (hello.role.is_node(), Said::Hello(body));
        (Dialer { keys, is_node, offers_in, said }, frame)
    }

    /// The body of a frame has arrived.
    ///
    /// # Errors
    /// It makes no sense here, or it is a Welcome from somebody who does not know the token.
    pub fn heard(&mut self, body: &[u8]) -> Result<Dialing, Malformed> {
        match (&self.said, body.first()) {
            (Said::Hello(hello), Some(&kind::CHALLENGE)) => {
                take_challenge(body)?;
                let said = sha256(&[hello, body]);
                let proof = self.proof(&said);
                self.said = Said::Proof(sha256(&[&said, &proof]));
                let mut frame = Vec::new();
                put_frame(&mut frame, |out| out.extend_from_slice(&proof));
                Ok(Dialing::Write(frame))
            }
            (Said::Hello(_), Some(&kind::REJECT)) => self.over(body, &[0; HASH_BYTES]),
            (Said::Proof(said), Some(&(kind::WELCOME | kind::REJECT))) => self.over(body, said),
            _ => Err(Malformed("answer of the handshake")),
        }
    }

    fn proof(&self, said: &Hash) -> Vec<u8> {
        let mut member_part = Vec::new();
        if self.is_node {
            let (mut standing, mut term, mut offer) = (0, 0, [0; SECRET_BYTES]);
            let mut shown = [0; HASH_BYTES];
            if let Some(own) = &self.keys.secret {
                standing |= if own.sealed { SEALED } else { 0 };
                if let Some(in_term) = self.offers_in.filter(|_| !own.sealed) {
                    (standing, term) = (standing | OFFERS, in_term);
                    offer = masked(&own.bytes, &self.offer_pad(said));
                }
                let about: [&[u8]; 3] = [&[standing], &term.to_le_bytes(), &offer];
                shown = code(&own.bytes, DIALER_MEMBER, said, &about);
            }
            member_part.push(standing);
            member_part.extend_from_slice(&term.to_le_bytes());
            member_part.extend_from_slice(&shown);
            member_part.extend_from_slice(&offer);
        }
        let codes: Vec<Hash> = tokens(&self.keys.token)
            .map(|token| code(token, DIALER_TOKEN, said, &[&member_part]))
            .collect();
        let mut body = vec![kind::PROOF, codes.len() as u8];
        codes.iter().for_each(|code| body.extend_from_slice(code));
        body.extend_from_slice(&member_part);
        body
    }

    fn offer_pad(&self, said: &Hash) -> Hash {
        offer_pad(tokens(&self.keys.token).next().unwrap_or_default(), said)
    }

    fn over(&self, body: &[u8], said: &Hash) -> Result<Dialing, Malformed> {
        let mut input = Input(body);
        let answer = take_answer_fields(&mut input)?;
        let fields = &body[..body.len() - input.0.len()];
        let mut proven = Proven::default();
        let mut pad = JoinedPad([0; HASH_BYTES]);
        if !input.0.is_empty() {
            let shown = take_32(&mut input, "code of the token")?;
            let rest = input.0;
            let by = tokens(&self.keys.token).find(|token| {
                let expected = code(token, LISTENER_TOKEN, said, &[fields, rest]);
                equal(&shown, &expected)
            });
            proven.token = by.is_some();
            pad = JoinedPad::of(by.unwrap_or_default(), said);
            if self.is_node {
                let sealed = input.u8("standing")?;
                let shown = take_32(&mut input, "code of the members")?;
                if let Some(own) = self.keys.secret.filter(|_| proven.token) {
                    let about: [&[u8]; 2] = [fields, &[sealed]];
                    let expected = code(&own.bytes, LISTENER_MEMBER, said, &about);
                    proven.member = equal(&shown, &expected);
                    proven.sealed = proven.member && sealed == SEALED;
                }
            }
        }
        input.end("handshake answer length")?;
        if answer.is_ok() && !proven.token {
            return Err(Malformed("proof: it does not show that it knows the token"));
        }
        Ok(Dialing::Over(Box::new(Answered { answer, proven, pad })))
    }
}

fn offer_pad(token: &[u8], said: &Hash) -> Hash {
    code(token, OFFER_PAD, said, &[])
}

fn take_challenge(body: &[u8]) -> Result<u16, Malformed> {
    let mut input = Input(body);
    let _ = input.u8("frame kind")?;
    let version = input.u16("version")?;
    take_32(&mut input, "random number")?;
    input.end("challenge length")?;
    if version < PROTOCOL_VERSIONS.0 || version > PROTOCOL_VERSIONS.1 {
        return Err(Malformed("version"));
    }
    Ok(version)
}

// ---- the listener ----

/// The listening side of one handshake, behind the Hello.
#[derive(Debug)]
pub struct Listener {
    hello: Box<Hello>,
    version: u16,
    said: Hash,
}

impl Listener {
    /// The body of the first frame has arrived. Gives the Challenge's frame; the number must be random and
    /// new.
    ///
    /// # Errors
    /// What the dialer is told when it cannot go on.
    pub fn new(body: &[u8], nonce: &Nonce) -> Result<(Listener, Vec<u8>), Reject> {
        let hello = take_hello(body).map_err(|e| Reject::malformed(e.to_string()))?;
        let theirs = (hello.version_min, hello.version_max);
        let version = common_version(PROTOCOL_VERSIONS, theirs)
            .map_err(|message| Reject { code: RejectCode::Version, message })?;
        let mut frame = Vec::new();
        put_frame(&mut frame, |out| {
            out.push(kind::CHALLENGE);
            out.extend_from_slice(&version.to_le_bytes());
            out.extend_from_slice(nonce);
        });
        let said = sha256(&[body, &frame[FRAME_HEADER_BYTES..]]);
        Ok((Listener { hello: Box::new(hello), version, said }, frame))
    }

    /// What the dialer has said.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The body of the second frame has arrived: the dialer knows a token of that set.
    ///
    /// # Errors
    /// What the dialer is told when it does not.
    pub fn proof(self, body: &[u8], token_set: &[u8]) -> Result<Presented, Reject> {
        let malformed = |e: Malformed| Reject::malformed(e.to_string());
        let (codes, member_part) =
            take_proof(body, self.hello.role.is_node()).map_err(malformed)?;
        let knows = |token: &&[u8]| {
            let expected = code(token, DIALER_TOKEN, &self.said, &[member_part]);
            codes.iter().fold(false, |found, shown| found | equal(shown, &expected))
        };
        let Some(token) = tokens(token_set).find(knows).map(<[u8]>::to_vec) else {
            let message = match (token_set.is_empty(), knows(&&b""[..])) {
                (true, _) => "this node has no token: it was started without --token-file",
                (false, true) => "the token is missing",
                (false, false) => "the token is wrong",
            };
            return Err(Reject { code: RejectCode::Token, message: message.to_string() });
        };
        let Listener { hello, version, said } = self;
        let with_proof = sha256(&[&said, body]);
        let member_part = member_part.to_vec();
        let recorded = None;
        Ok(Presented { hello, version, token, said, with_proof, member_part, recorded })
    }
}

/// The codes for the tokens, and the member's part, which is empty of a client.
fn take_proof(body: &[u8], is_node: bool) -> Result<(Vec<Hash>, &[u8]), Malformed> {
    let mut input = Input(body);
    if input.u8("frame kind")? != kind::PROOF {
        return Err(Malformed("second frame: a proof is expected"));
    }
    let count = usize::from(input.u8("count of codes")?);
    if count == 0 || count > TOKENS_MAX {
        return Err(Malformed("count of codes"));
    }
    let mut codes = Vec::with_capacity(count);
    for _ in 0..count {
        codes.push(take_32(&mut input, "code of the token")?);
    }
    let member_part = input.bytes(if is_node { MEMBER_BYTES } else { 0 }, "member's part")?;
    input.end("proof length")?;
    Ok((codes, member_part))
}

/// A dialer that has shown that it knows the token, and what more it shows.
#[derive(Clone)]
pub struct Presented {
    /// What it said.
    pub hello: Box<Hello>,
    /// The version that both speak.
    pub version: u16,
    token: Vec<u8>,
    said: Hash,
    with_proof: Hash,
    member_part: Vec<u8>,
    /// What it came to, of one that a recording tells: there are no codes in it.
    recorded: Option<Shown>,
}

/// What a dialer has shown to a node, without the codes: as a recording tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// What it has proven.
    pub proven: Proven,
    /// The term in which it offers the members' secret, and the [pseudonym](Secret::pseudonym) of that.
    pub offer: Option<(Term, [u8; SECRET_BYTES])>,
}

/// Neither secret reaches a log.
impl fmt::Debug for Presented {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Presented");
        shown.field("hello", &self.hello).field("version", &self.version).finish_non_exhaustive()
    }
}

/// What a member's part says.
struct MemberPart<'a> {
    standing: u8,
    term: Term,
    shown: Hash,
    offer: [u8; SECRET_BYTES],
    about: [&'a [u8]; 3],
}

impl Presented {
    fn member_part(&self) -> Option<MemberPart<'_>> {
        let mut input = Input(&self.member_part);
        let standing = input.bytes(1, "standing").ok()?;
        let term = input.bytes(8, "term").ok()?;
        let shown = take_32(&mut input, "code").ok()?;
        let offer = input.bytes(SECRET_BYTES, "offer").ok()?;
        Some(MemberPart {
            standing: standing[0],
            term: Term::from_le_bytes(term.try_into().ok()?),
            shown,
            offer: offer.try_into().ok()?,
            about: [standing, term, offer],
        })
    }

    /// As a recording tells it: to a node that holds the pseudonym of the secret.
    pub fn recorded(hello: Hello, version: u16, shown: Shown) -> Presented {
        Presented {
            hello: Box::new(hello),
            version,
            token: Vec::new(),
            said: [0; HASH_BYTES],
            with_proof: [0; HASH_BYTES],
            member_part: Vec::new(),
            recorded: Some(shown),
        }
    }

    /// What a recording is to tell of it, to a node that holds the members' secret so.
    pub fn shown(&self, own: &Secret) -> Shown {
        let offer = || self.offer().map(|(term, secret)| (term, pseudonym(&secret)));
        self.recorded.unwrap_or_else(|| Shown { proven: self.proven(own), offer: offer() })
    }

    /// What a node has shown, to one that holds the members' secret so.
    pub fn proven(&self, own: &Secret) -> Proven {
        if let Some(recorded) = &self.recorded {
            return recorded.proven;
        }
        let part = self.member_part();
        let member = part.as_ref().is_some_and(|part| {
            let expected = code(&own.bytes, DIALER_MEMBER, &self.said, &part.about);
            equal(&part.shown, &expected)
        });
        let sealed = member && part.is_some_and(|part| part.standing & SEALED != 0);
        Proven { token: true, member, sealed }
    }

    /// The secret that a leader of a term offers. It is what the dialer has proven to hold.
    pub fn offer(&self) -> Option<(Term, [u8; SECRET_BYTES])> {
        if let Some(recorded) = &self.recorded {
            return recorded.offer;
        }
        let part = self.member_part().filter(|part| part.standing == OFFERS)?;
        let secret = masked(&part.offer, &offer_pad(&self.token, &self.said));
        let expected = code(&secret, DIALER_MEMBER, &self.said, &part.about);
        equal(&part.shown, &expected).then_some((part.term, secret))
    }

    /// The frame of the answer, with this side's proof in it.
    pub fn answer(&self, answer: &Result<Welcome, Reject>, own: Option<&Secret>) -> Vec<u8> {
        let mut fields = Vec::new();
        put_answer_fields(&mut fields, answer);
        let mut member_part = Vec::new();
        if self.hello.role.is_node() {
            let sealed = [own.map_or(0, |own| u8::from(own.sealed) * SEALED)];
            let about: [&[u8]; 2] = [&fields, &sealed];
            let shown = |own: &Secret| code(&own.bytes, LISTENER_MEMBER, &self.with_proof, &about);
            member_part.extend_from_slice(&sealed);
            member_part.extend_from_slice(&own.map_or([0; HASH_BYTES], shown));
        }
        let shown = code(&self.token, LISTENER_TOKEN, &self.with_proof, &[&fields, &member_part]);
        let mut frame = Vec::new();
        put_frame(&mut frame, |out| {
            out.extend_from_slice(&fields);
            out.extend_from_slice(&shown);
            out.extend_from_slice(&member_part);
        });
        frame
    }

    /// For a client that joins.
    pub fn pad(&self) -> JoinedPad {
        JoinedPad::of(&self.token, &self.with_proof)
    }
}
