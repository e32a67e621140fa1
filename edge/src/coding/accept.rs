//! Which coding a client takes: `Accept-Encoding` (RFC 9110 section 12.5.3).

use http::{HeaderMap, header};
use portico_api::v1::ContentCoding;

/// How much a client likes something, in thousandths; 0: not at all.
type Weight = u16;

/// As `Content-Encoding` has it.
pub(crate) fn name(coding: ContentCoding) -> &'static str {
    match coding {
        ContentCoding::Br => "br",
        ContentCoding::Zstd => "zstd",
        ContentCoding::Gzip => "gzip",
    }
}

/// The one of `offered` that the client likes best; of those that it likes equally the first. None: none, or it says nothing,
/// or it would rather have the body as it is.
pub(super) fn choose(headers: &HeaderMap, offered: &[ContentCoding]) -> Option<ContentCoding> {
    let liked = |name: &str| weight_of(headers, name);
    let any = liked("*");
    let identity = liked("identity").unwrap_or(0);
    let mut best: Option<(Weight, ContentCoding)> = None;
    for &coding in offered {
        let alias = || if coding == ContentCoding::Gzip { liked("x-gzip") } else { None };
        let weight = liked(name(coding)).or_else(alias).or(any).unwrap_or(0);
        if weight > 0 && weight >= identity && best.is_none_or(|(best, _)| weight > best) {
            best = Some((weight, coding));
        }
    }
    best.map(|(_, coding)| coding)
}

/// Of the first that is named so; a weight that is none makes it as if it were not named.
fn weight_of(headers: &HeaderMap, name: &str) -> Option<Weight> {
    let texts = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).find_map(|member| {
        let (coding, parameters) = member.split_once(';').map_or((member, None), |(a, b)| (a, Some(b)));
        if !coding.trim().eq_ignore_ascii_case(name) {
            return None;
        }
        parameters.map_or(Some(1000), parse_weight)
    })
}

/// `q=0.5` (RFC 9110 section 12.4.2).
fn parse_weight(text: &str) -> Option<Weight> {
    let text = text.trim();
    let value = text.strip_prefix("q=").or_else(|| text.strip_prefix("Q="))?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths: Weight = format!("{fraction:0<3}").parse().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn the_client_chooses_and_then_the_route() {
        use ContentCoding::{Br, Gzip, Zstd};
        for (asked, wanted) in [
            ("gzip, deflate, br, zstd", Some(Zstd)),
            ("gzip, br", Some(Br)),
            ("gzip", Some(Gzip)),
            ("X-GZIP", Some(Gzip)),
            ("br;q=0.5, gzip;q=0.8, zstd;q=0", Some(Gzip)),
            ("zstd;q=0.001", Some(Zstd)),
            ("zstd;q=1.000;x", None),
            ("zstd;q=1.001, gzip", Some(Gzip)),
            ("*", Some(Zstd)),
            ("*;q=0.5, zstd;q=0", Some(Br)),
            ("*;q=0", None),
            ("zstd;q=0, br;q=0.0, gzip;q=0.000", None),
            ("identity", None),
            ("identity;q=0.9, gzip;q=0.5", None),
            ("identity;q=0.5, gzip;q=0.5", Some(Gzip)),
            ("identity;q=0, gzip;q=0.1", Some(Gzip)),
            ("deflate, compress", None),
            ("gzip;q=0.1234", None),
            ("gzip;q=", None),
            ("gzip ; q=0.3", Some(Gzip)),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(asked));
            assert_eq!(choose(&headers, &[Zstd, Br, Gzip]), wanted, "{asked:?}");
        }
        assert_eq!(choose(&HeaderMap::new(), &[Zstd, Br, Gzip]), None);
        let mut several = HeaderMap::new();
        several.append(header::ACCEPT_ENCODING, HeaderValue::from_static("zstd;q=0"));
        several.append(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip, br"));
        assert_eq!(choose(&several, &[Gzip, Zstd, Br]), Some(Gzip));
    }
}
