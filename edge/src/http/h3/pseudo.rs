//! The order and number of pseudo-header fields in an encoded field section (RFC 9114 section 4.3, RFC 9204 section 4.5).
//!
//! h3 takes the last of several `:path` or `:authority` fields, one behind a regular field and a `:status` in a request,
//! and what it hands on no longer tells. Whatever looks at the same bytes before us (a firewall, a log) may believe the
//! first one. So the encoded section is walked here before h3 decodes it: names are told apart, values passed over.
//!
//! Deliberately absent: everything else about field sections, which h3 checks; names in trailers, where h3 drops
//! pseudo-header fields and nothing is decided by them.

/// Why a request's field section is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PseudoFault {
    #[error("a pseudo-header field comes twice")]
    Repeated,
    #[error("a pseudo-header field comes behind a regular field")]
    Late,
    #[error("a pseudo-header field that no request has")]
    Foreign,
    #[error("a field section that cannot be followed")]
    Unreadable,
}

/// Walks the encoded field section of a request.
///
/// # Errors
/// [`PseudoFault`]; [`PseudoFault::Unreadable`] stands also for what h3 refuses by itself.
pub(super) fn check(section: &[u8]) -> Result<(), PseudoFault> {
    let mut rest = Walk(section);
    // Required Insert Count and Base: of a dynamic table, which we do not offer.
    rest.integer(8)?;
    rest.integer(7)?;
    let mut seen = 0_u8;
    let mut regular = false;
    while let Some(&first) = rest.0.first() {
        match rest.field(first)? {
            Name::Regular => regular = true,
            Name::Foreign => return Err(PseudoFault::Foreign),
            Name::Request(_) if regular => return Err(PseudoFault::Late),
            Name::Request(which) if seen & which != 0 => return Err(PseudoFault::Repeated),
            Name::Request(which) => seen |= which,
        }
    }
    Ok(())
}

enum Name {
    Regular,
    /// One bit for each pseudo-header field of a request.
    Request(u8),
    Foreign,
}

const AUTHORITY: Name = Name::Request(1);
const METHOD: Name = Name::Request(2);
const PATH: Name = Name::Request(4);
const SCHEME: Name = Name::Request(8);
const PROTOCOL: Name = Name::Request(16);

struct Walk<'a>(&'a [u8]);

impl<'a> Walk<'a> {
    /// Passes one field line over (RFC 9204 sections 4.5.2, 4.5.4 and 4.5.6); the others refer to a dynamic table.
    fn field(&mut self, first: u8) -> Result<Name, PseudoFault> {
        match first {
            0b1100_0000.. => self.integer(6).map(of_static_table),
            0b0101_0000..=0b0101_1111 | 0b0111_0000..=0b0111_1111 => {
                let name = of_static_table(self.integer(4)?);
                self.string(7)?;
                Ok(name)
            }
            0b0010_0000..=0b0011_1111 => {
                let huffman = first & 0b1000 != 0;
                let name = of_literal(self.string(3)?, huffman);
                self.string(7)?;
                Ok(name)
            }
            _ => Err(PseudoFault::Unreadable),
        }
    }

    /// A string whose length has a prefix of that many bits.
    fn string(&mut self, prefix_bits: u32) -> Result<&'a [u8], PseudoFault> {
        let length = usize::try_from(self.integer(prefix_bits)?).map_err(|_| PseudoFault::Unreadable)?;
        let (string, rest) = self.0.split_at_checked(length).ok_or(PseudoFault::Unreadable)?;
        self.0 = rest;
        Ok(string)
    }

    /// An integer with a prefix of that many bits (RFC 7541 section 5.1), of at most 32 more.
    fn integer(&mut self, prefix_bits: u32) -> Result<u64, PseudoFault> {
        let mask = u64::MAX >> (64 - prefix_bits);
        let mut value = u64::from(self.byte()?) & mask;
        if value < mask {
            return Ok(value);
        }
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            value += u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(PseudoFault::Unreadable)
    }

    fn byte(&mut self) -> Result<u8, PseudoFault> {
        let (&byte, rest) = self.0.split_first().ok_or(PseudoFault::Unreadable)?;
        self.0 = rest;
        Ok(byte)
    }
}

/// RFC 9204 appendix A.
fn of_static_table(index: u64) -> Name {
    match index {
        0 => AUTHORITY,
        1 => PATH,
        15..=21 => METHOD,
        22 | 23 => SCHEME,
        24..=28 | 63..=71 => Name::Foreign, // :status
        _ => Name::Regular,
    }
}

/// A spelt name, perhaps in the Huffman code of RFC 7541 appendix B, where each text has one form.
fn of_literal(name: &[u8], huffman: bool) -> Name {
    match (huffman, name) {
        (false, b":authority") | (true, b"\xb8\x3b\x53\x39\xec\x32\x7d\x7f") => AUTHORITY,
        (false, b":method") | (true, b"\xb9\x49\x53\x39\xe4") => METHOD,
        (false, b":path") | (true, b"\xb9\x58\xd3\x3f") => PATH,
        (false, b":scheme") | (true, b"\xb8\x82\x4e\x5a\x4b") => SCHEME,
        (false, b":protocol") | (true, b"\xb9\x5d\x87\x49\xc8\x7a\x3f") => PROTOCOL,
        (false, [b':', ..]) => Name::Foreign,
        // The code of a colon, 1011100.
        (true, [first, ..]) if first >> 1 == 0b101_1100 => Name::Foreign,
        _ => Name::Regular,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// :method GET, :scheme https, :path /, :authority by reference.
    const SOUND: &[u8] = b"\x00\x00\xd1\xd7\xc1\x50\x03a.b";

    fn with(more: &[u8]) -> Result<(), PseudoFault> {
        check(&[SOUND, more].concat())
    }

    #[test]
    fn each_form_of_a_second_pseudo_field_is_seen() {
        assert_eq!(check(SOUND), Ok(()));
        assert_eq!(with(b"\x5f\x0e\x01x\x23abc\x01y"), Ok(()), "regular fields in both forms");
        let again: [&[u8]; 8] = [
            b"\xc1",
            b"\xd4",
            b"\x51\x02/x",
            b"\x50\x03c.d",
            b"\x25:path\x02/x",
            b"\x2c\xb9\x58\xd3\x3f\x02/x",
            b"\x27\x03:authority\x03c.d",
            b"\x2f\x01\xb8\x3b\x53\x39\xec\x32\x7d\x7f\x03c.d",
        ];
        for more in again {
            assert_eq!(with(more), Err(PseudoFault::Repeated), "{}", more.escape_ascii());
        }
    }

    #[test]
    fn late_and_foreign_ones_are_seen() {
        assert_eq!(check(b"\x00\x00\xd1\xd7\xc1\x23abc\x01y\x50\x03a.b"), Err(PseudoFault::Late));
        assert_eq!(with(b"\xd9"), Err(PseudoFault::Foreign), ":status 200");
        assert_eq!(with(b"\x22:x\x01y"), Err(PseudoFault::Foreign));
    }

    #[test]
    fn no_bytes_lead_astray() {
        for cut in 0..SOUND.len() {
            let _any = check(&SOUND[..cut]);
        }
        assert_eq!(with(b"\x80"), Err(PseudoFault::Unreadable), "a dynamic table");
        assert_eq!(with(b"\x10"), Err(PseudoFault::Unreadable));
        assert_eq!(with(b"\xff\xff\xff\xff\xff\xff\xff"), Err(PseudoFault::Unreadable));
        assert_eq!(with(b"\x27\xff\xff\xff\xff\x0fabc"), Err(PseudoFault::Unreadable));
    }
}
