//! What of a route's answers is compressed, and how.

use std::sync::LazyLock;

use super::PolicyFault;
use crate::v1::{self, ContentCoding};

const MIN_BYTES_DEFAULT: u32 = 1024;
const MIN_BYTES_MAX: u32 = 1024 * 1024;
/// Media types of one policy, and bytes of one.
const TYPES_MAX: usize = 64;
const TYPE_BYTES_MAX: usize = 128;

/// Compressible by what they are, and often sent plain. Images, video, archives and WOFF are compressed already.
const TYPES_DEFAULT: [&str; 13] = [
    "text/*",
    "application/json",
    "application/*+json",
    "application/javascript",
    "application/x-javascript",
    "application/xml",
    "application/*+xml",
    "application/wasm",
    "image/svg+xml",
    "image/bmp",
    "font/ttf",
    "font/otf",
    "application/vnd.ms-fontobject",
];
static USUAL: LazyLock<Box<[MediaRange]>> =
    LazyLock::new(|| TYPES_DEFAULT.iter().filter_map(|text| MediaRange::parse(text)).collect());
/// Events wait for nobody, and their clients keep them open for hours: only where they are named.
const NAMED_ONLY: &str = "text/event-stream";

/// A compression policy that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompressionRule {
    /// In order of preference; at least one.
    pub codings: Box<[ContentCoding]>,
    pub min_bytes: u32,
    /// None: the usual ones.
    types: Option<Box<[MediaRange]>>,
}

/// A media type or several, in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MediaRange {
    /// With its slash.
    kind: Box<str>,
    subtype: Subtype,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Subtype {
    Any,
    /// With its plus sign (RFC 6838 section 4.2.8).
    Suffix(Box<str>),
    One(Box<str>),
}

impl CompressionRule {
    /// Reads a policy.
    ///
    /// # Errors
    /// Everything that is wrong with it; at least one fault.
    pub fn parse(from: &v1::CompressionPolicy) -> Result<Self, Vec<PolicyFault>> {
        let mut faults = Vec::new();
        let mut codings: Vec<ContentCoding> = Vec::new();
        for (index, coding) in from.codings.iter().enumerate() {
            if codings.contains(coding) {
                let message = "a coding is named once".to_owned();
                faults.push(PolicyFault::at(format!("/codings/{index}"), "duplicate", message));
            } else {
                codings.push(*coding);
            }
        }
        if codings.is_empty() {
            codings = vec![ContentCoding::Zstd, ContentCoding::Br, ContentCoding::Gzip];
        }
        let min_bytes = from.min_bytes.unwrap_or(MIN_BYTES_DEFAULT);
        if !(1..=MIN_BYTES_MAX).contains(&min_bytes) {
            let message = format!("must be from 1 to {MIN_BYTES_MAX}");
            faults.push(PolicyFault::at("/min_bytes".into(), "out_of_range", message));
        }
        let types = parse_types(&from.content_types, &mut faults);
        if faults.is_empty() { Ok(Self { codings: codings.into(), min_bytes, types }) } else { Err(faults) }
    }

    /// Whether a body of this type is compressed; `content_type` as the field has it, with parameters perhaps.
    pub fn takes(&self, content_type: &str) -> bool {
        let essence = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
        let Some(slash) = essence.find('/') else { return false };
        let (kind, subtype) = essence.split_at(slash + 1);
        let types = self.types.as_deref().unwrap_or(&USUAL);
        types.iter().any(|range| {
            let fits = match &range.subtype {
                Subtype::One(one) => **one == *subtype,
                Subtype::Any => essence != NAMED_ONLY,
                Subtype::Suffix(suffix) => subtype.ends_with(&**suffix),
            };
            fits && *range.kind == *kind
        })
    }
}

fn parse_types(texts: &[String], faults: &mut Vec<PolicyFault>) -> Option<Box<[MediaRange]>> {
    if texts.len() > TYPES_MAX {
        let message = format!("at most {TYPES_MAX} media types");
        faults.push(PolicyFault::at("/content_types".into(), "too_many", message));
        return None;
    }
    if texts.is_empty() {
        return None;
    }
    let mut types = Vec::with_capacity(texts.len());
    for (index, text) in texts.iter().enumerate() {
        match MediaRange::parse(text) {
            Some(range) => types.push(range),
            None => {
                let message =
                    "must be a media type such as text/html, text/* or application/*+json".to_owned();
                faults.push(PolicyFault::at(
                    format!("/content_types/{index}"),
                    "invalid_media_type",
                    message,
                ));
            }
        }
    }
    Some(types.into())
}

impl MediaRange {
    fn parse(text: &str) -> Option<Self> {
        if text.len() > TYPE_BYTES_MAX {
            return None;
        }
        let text = text.to_ascii_lowercase();
        let slash = text.find('/')?;
        let (kind, subtype) = text.split_at(slash + 1);
        let subtype = match subtype {
            "*" => Subtype::Any,
            suffix if suffix.starts_with("*+") && is_name(&suffix[2..]) => {
                Subtype::Suffix(suffix[1..].into())
            }
            one if is_name(one) => Subtype::One(one.into()),
            _ => return None,
        };
        is_name(&kind[..slash]).then(|| Self { kind: kind.into(), subtype })
    }
}

/// RFC 6838 section 4.2.
fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(content_types: &[&str]) -> CompressionRule {
        let content_types = content_types.iter().map(|&text| text.to_owned()).collect();
        CompressionRule::parse(&v1::CompressionPolicy { content_types, ..Default::default() }).unwrap()
    }

    #[test]
    fn types_are_taken_by_name_by_kind_and_by_suffix() {
        let default = rule(&[]);
        for (text, wanted) in [
            ("text/html; charset=utf-8", true),
            ("TEXT/CSS", true),
            ("application/problem+json", true),
            ("image/svg+xml", true),
            ("application/wasm", true),
            ("image/png", false),
            ("font/woff2", false),
            ("application/octet-stream", false),
            ("application/grpc", false),
            ("text/event-stream", false),
            ("text", false),
            ("", false),
        ] {
            assert_eq!(default.takes(text), wanted, "{text}");
        }
        let own = rule(&["text/event-stream", "image/*", "application/*+cbor"]);
        for (text, wanted) in [
            ("text/event-stream", true),
            ("image/bmp", true),
            ("application/a+cbor", true),
            ("application/cbor", false),
            ("text/html", false),
        ] {
            assert_eq!(own.takes(text), wanted, "{text}");
        }
    }

    #[test]
    fn each_wrong_field_is_pointed_at() {
        let policy = v1::CompressionPolicy {
            codings: vec![ContentCoding::Br, ContentCoding::Gzip, ContentCoding::Br],
            min_bytes: Some(0),
            content_types: ["text/html", "text", "*/*", "text/", "a b/c", "text/*html"]
                .map(Into::into)
                .into(),
        };
        let faults = CompressionRule::parse(&policy).unwrap_err();
        let pointers: Vec<&str> = faults.iter().map(|fault| fault.below.as_str()).collect();
        let wanted = [
            "/codings/2",
            "/min_bytes",
            "/content_types/1",
            "/content_types/2",
            "/content_types/3",
            "/content_types/4",
            "/content_types/5",
        ];
        assert_eq!(pointers, wanted);
    }
}
