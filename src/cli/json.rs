//! A writer of JSON, as much as the answers of `--json`, `/status` and the reports need.
//!
//! Left out: reading. Nothing of ours takes JSON as input.

use std::fmt::{self, Write};

/// A JSON value.
#[derive(Clone, Debug, PartialEq)]
pub enum Json {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Unsigned(u64),
    /// A whole number that may be negative.
    Signed(i64),
    /// A fraction; one that is not finite is written as `null`.
    Float(f64),
    /// A string.
    String(String),
    /// Values in order.
    Array(Vec<Json>),
    /// Named values in order. Names are the caller's to keep distinct.
    Object(Vec<(&'static str, Json)>),
}

impl Json {
    /// Bytes: a string when they are UTF-8, else `{"base64":"..."}`.
    pub fn bytes(bytes: &[u8]) -> Json {
        match std::str::from_utf8(bytes) {
            Ok(text) => Json::String(text.to_owned()),
            Err(_) => Json::Object(vec![("base64", Json::String(base64(bytes)))]),
        }
    }
}

impl From<&str> for Json {
    fn from(text: &str) -> Json {
        Json::String(text.to_owned())
    }
}

impl From<String> for Json {
    fn from(text: String) -> Json {
        Json::String(text)
    }
}

impl From<u64> for Json {
    fn from(number: u64) -> Json {
        Json::Unsigned(number)
    }
}

impl From<i64> for Json {
    fn from(number: i64) -> Json {
        Json::Signed(number)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Json {
        Json::Bool(value)
    }
}

impl<T: Into<Json>> From<Option<T>> for Json {
    fn from(value: Option<T>) -> Json {
        value.map_or(Json::Null, Into::into)
    }
}

/// One line, without spaces.
impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Json::Null => f.write_str("null"),
            Json::Bool(value) => write!(f, "{value}"),
            Json::Unsigned(number) => write!(f, "{number}"),
            Json::Signed(number) => write!(f, "{number}"),
            Json::Float(number) if number.is_finite() => write!(f, "{number}"),
            Json::Float(_) => f.write_str("null"),
            Json::String(text) => write_string(f, text),
            Json::Array(items) => {
                f.write_char('[')?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { "," } else { "" })?;
                }
                f.write_char(']')
            }
            Json::Object(fields) => {
                f.write_char('{')?;
                for (i, (name, value)) in fields.iter().enumerate() {
                    f.write_str(if i > 0 { "," } else { "" })?;
                    write_string(f, name)?;
                    write!(f, ":{value}")?;
                }
                f.write_char('}')
            }
        }
    }
}

fn write_string(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    f.write_char('"')?;
    for c in text.chars() {
        match c {
            '"' => f.write_str("\\\"")?,
            '\\' => f.write_str("\\\\")?,
            '\n' => f.write_str("\\n")?,
            '\r' => f.write_str("\\r")?,
            '\t' => f.write_str("\\t")?,
            // All other control characters, and the two line ends that old JavaScript stumbles on.
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
                write!(f, "\\u{:04x}", u32::from(c))?;
            }
            c => f.write_char(c)?,
        }
    }
    f.write_char('"')
}

/// Base64 with padding (RFC 4648, section 4).
pub fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let byte = |i: usize| u32::from(group.get(i).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let letter = LETTERS[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= group.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_one_line_with_its_fields_in_order() {
        // The shape that `get --json` promises.
        let answer = Json::Object(vec![
            ("key", Json::bytes(b"city")),
            ("value", Json::bytes(b"Oslo")),
            ("revision", 7u64.into()),
        ]);
        assert_eq!(answer.to_string(), r#"{"key":"city","value":"Oslo","revision":7}"#);
    }

    #[test]
    fn every_kind_of_value_is_written() {
        // Nested and empty ones too; a number that is not finite has no form in JSON.
        let value = Json::Array(vec![
            Json::Null,
            true.into(),
            (-3i64).into(),
            Json::Float(0.5),
            Json::Float(f64::NAN),
            Option::<u64>::None.into(),
            Json::Array(vec![]),
            Json::Object(vec![]),
        ]);
        assert_eq!(value.to_string(), "[null,true,-3,0.5,null,null,[],{}]");
    }

    #[test]
    fn strings_are_escaped() {
        // Quotes, control characters and separators never break the line; other text stays as it is.
        let text = Json::from("a\"\\\n\r\t\u{0}\u{1b}\u{7f}\u{2028}ø");
        assert_eq!(text.to_string(), r#""a\"\\\n\r\t\u0000\u001b\u007f\u2028ø""#);
    }

    #[test]
    fn bytes_that_are_not_text_become_base64() {
        // The test vectors of RFC 4648, then bytes that are not UTF-8.
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
        assert_eq!(Json::bytes(b"\xff\xfe\xfd").to_string(), r#"{"base64":"//79"}"#);
    }
}
