//! How one path may be spelt (RFC 3986 section 6.2.2).
//!
//! A path goes to the origin as the client spelt it, and an origin may answer its spellings differently; so what is kept
//! is kept by the spelling. Only those that clients really send are kept, so that a purge finds all of them: no letter is
//! encoded that needs no encoding, and the digits of encodings are all in one case.

/// Whether a request with this path may be answered from what is kept.
pub(super) fn is_usual(path: &str) -> bool {
    if !path.contains('%') {
        return true;
    }
    let mut letters = encodings(path).flat_map(|digits| digits.chars()).filter(char::is_ascii_alphabetic);
    let upper = letters.next().is_none_or(|first| first.is_ascii_uppercase());
    letters.all(|digit| digit.is_ascii_uppercase() == upper)
        && !encodings(path).any(|digits| unreserved(digits).is_some())
}

/// The usual spellings of what a path names.
pub(super) fn usual(path: &str) -> Vec<String> {
    let mut pieces = path.split('%');
    let mut lower = pieces.next().unwrap_or_default().to_owned();
    let mut upper = lower.clone();
    for piece in pieces {
        match piece.split_at_checked(2) {
            Some((digits, rest)) if let Some(plain) = unreserved(digits) => {
                for spelt in [&mut lower, &mut upper] {
                    spelt.push(plain);
                    spelt.push_str(rest);
                }
            }
            Some((digits, rest)) if is_hex(digits) => {
                lower.extend(["%", &digits.to_ascii_lowercase(), rest]);
                upper.extend(["%", &digits.to_ascii_uppercase(), rest]);
            }
            Some(_) | None => {
                lower.extend(["%", piece]);
                upper.extend(["%", piece]);
            }
        }
    }
    if lower == upper { vec![lower] } else { vec![lower, upper] }
}

/// The two digits of each percent-encoding.
fn encodings(path: &str) -> impl Iterator<Item = &str> {
    path.split('%').skip(1).filter_map(|piece| piece.get(..2)).filter(|digits| is_hex(digits))
}

fn is_hex(digits: &str) -> bool {
    digits.bytes().all(|digit| digit.is_ascii_hexdigit())
}

/// The letter that these digits need not encode (RFC 3986 section 2.3).
fn unreserved(digits: &str) -> Option<char> {
    let letter = char::from(u8::from_str_radix(digits, 16).ok().filter(|_| is_hex(digits))?);
    (letter.is_ascii_alphanumeric() || matches!(letter, '-' | '.' | '_' | '~')).then_some(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_among_what_a_purge_names() {
        let table: &[(&str, bool, &[&str])] = &[
            ("/a//b", true, &["/a//b"]),
            ("/%61", false, &["/a"]),
            ("/caf%c3%a9", true, &["/caf%c3%a9", "/caf%C3%A9"]),
            ("/caf%C3%A9", true, &["/caf%c3%a9", "/caf%C3%A9"]),
            ("/caf%C3%a9", false, &["/caf%c3%a9", "/caf%C3%A9"]),
            ("/%cF", false, &["/%cf", "/%CF"]),
            ("/%20", true, &["/%20"]),
            ("/%7e", false, &["/~"]),
            ("/100%", true, &["/100%"]),
            ("/%zz%2", true, &["/%zz%2"]),
            ("/%é", true, &["/%é"]),
            ("/%+1", true, &["/%+1"]),
        ];
        for (path, is_kept, named) in table {
            assert_eq!(is_usual(path), *is_kept, "{path}");
            assert_eq!(usual(path), *named, "{path}");
            assert!(!is_kept || named.contains(path), "{path}");
            assert!(named.iter().all(|spelt| is_usual(spelt)), "{path}");
        }
    }
}
