use http::{HeaderMap, HeaderName, Method};
use proptest::prelude::*;

use super::*;

fn path(text: &str) -> PathMatch {
    PathMatch::parse(text, false).unwrap()
}

fn rest<'p>(prefix: &str, request: &'p str) -> Option<&'p str> {
    path(prefix).rest(&RequestPath::new(request))
}

fn rule(text: &RuleText<'_>) -> Rule {
    Rule::parse(text, ActionKind::Proxy).unwrap()
}

fn faults(text: &RuleText<'_>, action: ActionKind) -> Vec<(String, &'static str)> {
    let faults = Rule::parse(text, action).err().unwrap_or_default();
    faults.into_iter().map(|fault| (format!("/{}{}", fault.part.name(), fault.below), fault.code)).collect()
}

#[test]
fn a_prefix_holds_whole_segments() {
    for (prefix, request, expected) in [
        ("/", "/", Some("/")),
        ("/", "/a", Some("/a")),
        ("/", "*", None),
        ("/a", "/a", Some("")),
        ("/a/", "/a", Some("")),
        ("/a", "/a/", Some("/")),
        ("/a", "/a/b", Some("/b")),
        ("/a", "/ab", None),
        ("/a", "/b/a", None),
        ("/a", "*", None),
        ("/%C3%A4", "/%c3%a4/x", Some("/x")),
        ("/a(b", "/a%28b", Some("")),
        ("/%C3%A4", "/ä", Some("")),
    ] {
        assert_eq!(rest(prefix, request), expected, "{prefix} {request}");
    }
}

/// Each of these is below `/admin` to some server.
#[test]
fn no_spelling_gets_around_a_prefix() {
    for request in [
        "/%61dmin/x",
        "//admin/x",
        "/admin//x",
        "/%2fadmin/x",
        "\\admin/x",
        "/\\admin/x",
        "/admin%2fx",
        "/admin%5Cx",
        "/admin\\x",
        "/admin;a=b/x",
        "/;a=b/admin/x",
        "/adm%69n;jsessionid=1",
    ] {
        assert!(rest("/admin", request).is_some(), "{request}");
    }
    for request in ["/administrator", "/admin%20x", "/a;dmin", "/%2561dmin", "/ADMIN"] {
        assert_eq!(rest("/admin", request), None, "{request}");
    }
}

/// As far as the longest rule reaches, whatever stands in between.
#[test]
fn a_path_is_read_as_far_as_the_longest_rule() {
    let longest = format!("/{}", "abcd/".repeat(PATH_BYTES_MAX)).get(..PATH_BYTES_MAX).unwrap().to_owned();
    let spelt = longest.replace('/', "/;x//").replace('a', "%61");
    for exact in [true, false] {
        let rule = PathMatch::parse(&longest, exact).unwrap();
        for (more, expected) in [("", true), (";x", true), (";x/", !exact), ("/", !exact), ("a", false)] {
            let request = format!("{spelt}{more}");
            assert_eq!(rule.rest(&RequestPath::new(&request)).is_some(), expected, "{exact} {more}");
            assert_eq!(read_anew(&rule, &request).is_some(), expected, "{exact} {more}");
        }
    }
}

#[test]
fn an_exact_path_is_that_path_alone() {
    let exact = PathMatch::parse("/a", true).unwrap();
    for (request, expected) in
        [("/a", true), ("/%61", true), ("/a;x=y", true), ("/a/", false), ("/a/b", false), ("/ab", false)]
    {
        assert_eq!(exact.rest(&RequestPath::new(request)).is_some(), expected, "{request}");
    }
    let folder = PathMatch::parse("/a/", true).unwrap();
    assert!(folder.rest(&RequestPath::new("/a/")).is_some());
    assert!(folder.rest(&RequestPath::new("/a")).is_none());
    let root = PathMatch::parse("/", true).unwrap();
    assert!(root.rest(&RequestPath::new("/")).is_some());
    assert!(root.rest(&RequestPath::new("/a")).is_none());
}

#[test]
fn paths_that_readers_disagree_on_are_no_rules() {
    for wrong in [
        "",
        "a",
        "/a?b",
        "/a#b",
        "/a b",
        "/a\\b",
        "/a;b",
        "/a%2fb",
        "/a%5cb",
        "/a%3bb",
        "/a%00",
        "/a%",
        "/a%2",
        "/a%zz",
        "/a//b",
        "/..",
        "/a/../b",
        "/a/./b",
        "/a/%2e%2E",
        "/a/.",
        "/ä",
        "/a\r\nb",
    ] {
        assert!(PathMatch::parse(wrong, false).is_err(), "{wrong:?}");
        assert!(Replacement::parse(wrong).is_err(), "{wrong:?}");
    }
    assert!(PathMatch::parse(&format!("/{}", "a".repeat(1023)), false).is_ok());
    assert!(PathMatch::parse(&format!("/{}", "a".repeat(1024)), false).is_err());
}

#[test]
fn a_path_gets_its_new_prefix() {
    for (prefix, replacement, request, expected) in [
        ("/old", "/new", "/old", Ok("/new")),
        ("/old", "/new", "/old/x", Ok("/new/x")),
        ("/old", "/new/", "/old", Ok("/new/")),
        ("/old", "/new/", "/old/x", Ok("/new/x")),
        ("/old", "/", "/old", Ok("/")),
        ("/old", "/", "/old/x%2Fy", Ok("/x%2Fy")),
        ("/old", "/", "/old//evil.example/", Ok("/evil.example/")),
        ("/old", "/new", "/old//x", Ok("/new//x")),
        ("/", "/app", "/", Ok("/app/")),
        ("/", "/app", "/x", Ok("/app/x")),
        ("/old", "/new", "/old/..", Err(Climbs)),
        ("/old", "/new", "/old/%2e%2e/x", Err(Climbs)),
        ("/old", "/new", "/old/a%2f..%2f..", Err(Climbs)),
        ("/old", "/new", "/old/..;/x", Err(Climbs)),
        ("/old", "/new", "/old/..%3b/x", Err(Climbs)),
        ("/old", "/new", "/old/..%00/x", Err(Climbs)),
        ("/old", "/new", "/old/..\\x", Err(Climbs)),
        ("/old", "/new", "/old/%252e%252e%252fx", Err(Climbs)),
        ("/old", "/new", "/old/%c0%ae%c0%ae/x", Err(Climbs)),
        ("/old", "/new", "/old/a%c0%af../x", Err(Climbs)),
        ("/old", "/new", "/old/..%2f%//", Err(Climbs)),
        ("/old", "/new", "/old%2f..%2fx", Err(Climbs)),
        ("/old", "/new", "/old%2fx", Err(Climbs)),
        ("/old", "/new", "/old;x", Err(Climbs)),
    ] {
        let rest = rest(prefix, request).unwrap();
        let found = Replacement::parse(replacement).unwrap().with(rest);
        assert_eq!(found.as_deref(), expected.as_ref().copied(), "{prefix} {replacement} {request}");
    }
    for harmless in ["/a..b", "/...", "/..a", "/%2e%2ea", "/a%2fb", "/x%", "/x%25", "/%", "/a/%2"] {
        assert!(!climbs(harmless), "{harmless}");
    }
}

/// What a reader of another mind makes of a path: decodes again and again, takes every slash for one, leaves parameters out,
/// and walks. Written apart from the code above on purpose.
fn walked(path: &str) -> Option<Vec<String>> {
    let mut text = path.to_ascii_lowercase();
    for _ in 0..6 {
        for (from, to) in [
            ("%c0%ae", "."),
            ("%c0%af", "/"),
            ("%c1%9c", "\\"),
            ("%2e", "."),
            ("%2f", "/"),
            ("%5c", "\\"),
            ("%3b", ";"),
            ("%00", "\0"),
            ("%25", "%"),
        ] {
            text = text.replace(from, to);
        }
    }
    let mut place = Vec::new();
    for segment in text.split(['/', '\\']) {
        match segment.split([';', '\0']).next().unwrap_or_default() {
            "" | "." => {}
            ".." => drop(place.pop()?),
            name => place.push(name.to_owned()),
        }
    }
    Some(place)
}

/// What of a path lies below a rule's, found from the path itself.
fn read_anew<'p>(rule: &PathMatch, request: &'p str) -> Option<&'p str> {
    if !rule.is_exact() && rule.as_str() == "/" {
        return request.starts_with('/').then_some(request);
    }
    let (mut wanted, mut left) = (rule.as_str().as_bytes(), request.as_bytes());
    while let Some(unit) = path::first(wanted) {
        wanted = &wanted[unit.bytes..];
        left = match unit.byte {
            b'/' => path::skip_separators(left)?,
            byte => {
                let found = path::first(left).filter(|found| found.byte == byte)?;
                &left[found.bytes..]
            }
        };
    }
    let rest = request.get(request.len() - left.len()..)?;
    let ends = if rule.is_exact() { path::params_end(left) == left.len() } else { path::ends_segment(rest) };
    ends.then_some(rest)
}

fn piece() -> impl Strategy<Value = String> {
    const FIXED: &[&str] = &[
        "/", "//", "\\", "..", ".", "%2e", "%2E", "%2f", "%2F", "%5c", "%3b", ";", "%00", "%252e", "%25252f",
        "%25", "%", "%c0%ae", "%C0%AF", "%c1%9c", "a", "b", "..;", "/..", "/../", "old", "new", "%6f",
    ];
    prop_oneof![4 => prop::sample::select(FIXED).prop_map(str::to_owned), 1 => "[!-~&&[^?#]]{0,4}"]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    /// Whatever a client writes, a rewritten path is below the new prefix to the widest of readers, or there is none.
    #[test]
    fn no_rewritten_path_leaves_the_new_prefix(
        pieces in prop::collection::vec(piece(), 0..10),
        prefix in prop::sample::select(&["/", "/old", "/old/deep", "/%6fld"][..]),
        replacement in prop::sample::select(&["/", "/new", "/new/", "/new/deeper"][..]),
    ) {
        let request = format!("{}{}", prefix.trim_end_matches('/'), pieces.concat());
        let Some(rest) = path(prefix).rest(&RequestPath::new(&request)) else { return Ok(()) };
        let Ok(result) = Replacement::parse(replacement).unwrap().with(rest) else { return Ok(()) };
        prop_assert!(result.starts_with('/') && !result.starts_with("//"), "{result}");
        let base = walked(replacement).unwrap();
        let place = walked(&result);
        prop_assert!(place.as_ref().is_some_and(|place| place.starts_with(&base)), "{request} became {result}");
    }

    /// A path that is read once for all rules is matched as one that each rule reads for itself, byte by byte.
    #[test]
    fn a_path_that_was_read_before_is_matched_as_one_that_was_not(
        pieces in prop::collection::vec(piece(), 0..12),
        rule in prop::sample::select(
            &["/", "/a", "/a/", "/old", "/%6fld/b", "/old/a/", "/a/b/a", "/%25", "/a%20b", "/%C3%A4", "/%"][..]
        ),
        begins in any::<bool>(),
        exact in any::<bool>(),
    ) {
        let Ok(rule) = PathMatch::parse(rule, exact) else { return Ok(()) };
        let begin = if begins { rule.as_str() } else { "" };
        let request = format!("{begin}{}", pieces.concat());
        prop_assert_eq!(rule.rest(&RequestPath::new(&request)), read_anew(&rule, &request), "{}", request);
    }

    /// The quick way and the widest reading agree where there is one reading.
    #[test]
    fn plain_paths_are_matched_as_they_are_written(prefix in "(/[ab]{1,2}){1,3}/?", request in "(/[ab]{1,2}){1,4}/?") {
        let trimmed = prefix.trim_end_matches('/');
        let by_segments = request == trimmed || request.starts_with(&format!("{trimmed}/"));
        prop_assert_eq!(rest(&prefix, &request).is_some(), by_segments);
        prop_assert_eq!(read_anew(&path(&prefix), &request), rest(&prefix, &request));
    }
}

#[test]
fn methods_and_headers_narrow_a_rule() {
    let methods = ["GET".to_owned(), "PURGE".to_owned()];
    let narrow = rule(&RuleText {
        path: "/",
        methods: &methods,
        headers: vec![("X-Beta", Some("on")), ("x-key", None)],
        ..RuleText::default()
    });
    let matches = |method: &str, headers: &[(&str, &str)]| {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
        }
        narrow.matches(&method.parse().unwrap(), &RequestPath::new("/x"), &map).is_some()
    };
    let both = [("x-beta", "off"), ("x-beta", "on"), ("x-key", "")];
    assert!(matches("GET", &both) && matches("HEAD", &both) && matches("PURGE", &both));
    assert!(!matches("POST", &both) && !matches("purge", &both));
    assert!(!matches("GET", &both[..2]) && !matches("GET", &[("x-beta", "ON"), ("x-key", "")]));
    assert_eq!(narrow.methods(), [Method::GET, Method::from_bytes(b"PURGE").unwrap()]);
}

#[test]
fn rules_that_are_never_reached_are_found() {
    let methods = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    let (get, post, both) = (methods(&["GET"]), methods(&["POST"]), methods(&["GET", "POST"]));
    let head = methods(&["HEAD"]);
    let on = || vec![("x-beta", Some("on"))];
    let there = || vec![("x-beta", None)];
    let below = RuleText::prefix;
    let of = |path, methods| RuleText { path, methods, ..RuleText::default() };
    let with = |path, headers| RuleText { path, headers, ..RuleText::default() };
    let exact = |path| RuleText { path, exact: true, ..RuleText::default() };
    for (texts, expected) in [
        (vec![below("/a"), below("/")], vec![]),
        (vec![below("/"), below("/a")], vec![(1, 0)]),
        (vec![below("/a"), below("/a/")], vec![(1, 0)]),
        (vec![below("/a"), below("/ab"), exact("/a/b")], vec![(2, 0)]),
        (vec![exact("/a"), below("/a")], vec![]),
        (vec![exact("/a"), exact("/%61")], vec![(1, 0)]),
        (vec![of("/", &get), below("/")], vec![]),
        (vec![of("/", &get), of("/a", &head)], vec![(1, 0)]),
        (vec![of("/", &head), of("/a", &get)], vec![]),
        (vec![of("/", &get), of("/", &both)], vec![]),
        (vec![of("/", &get), of("/", &post), of("/a", &both)], vec![(2, 0)]),
        (vec![with("/", on()), below("/")], vec![]),
        (vec![with("/", there()), with("/a", on())], vec![(1, 0)]),
        (vec![with("/", on()), with("/a", there())], vec![]),
    ] {
        let rules: Vec<Rule> = texts.iter().map(rule).collect();
        assert_eq!(unreachable(&rules), expected, "{texts:?}");
    }
}

#[test]
fn faults_point_at_their_field() {
    let lower = ["get".to_owned(), "TRACE".to_owned(), "POST".to_owned(), "POST".to_owned()];
    let remove = ["connection".to_owned(), "X-A".to_owned(), "x y".to_owned()];
    let text = RuleText {
        path: "a",
        methods: &lower,
        headers: vec![
            ("x y", None),
            ("host", None),
            ("x-a", Some("a\r\nb")),
            ("x-b", None),
            ("X-B", None),
            ("cookie", Some("a")),
        ],
        replace_prefix: Some("/.."),
        request_headers: ChangesText {
            set: vec![("x-a", "1"), ("x/b", "1"), ("x-c", "a\r\nb")],
            remove: &remove,
        },
        ..RuleText::default()
    };
    let expected = [
        ("/path_prefix", "invalid_path"),
        ("/methods/0", "invalid_method"),
        ("/methods/1", "invalid_method"),
        ("/methods/3", "duplicate"),
        ("/headers/0/name", "invalid_header"),
        ("/headers/1/name", "header_refused"),
        ("/headers/2/equals", "invalid_header"),
        ("/headers/4/name", "duplicate"),
        ("/headers/5/equals", "header_refused"),
        ("/replace_prefix", "invalid_path"),
        ("/request_headers/set/x~1b", "invalid_header"),
        ("/request_headers/set/x-c", "invalid_header"),
        ("/request_headers/remove/0", "header_refused"),
        ("/request_headers/remove/1", "duplicate"),
        ("/request_headers/remove/2", "invalid_header"),
    ];
    assert_eq!(faults(&text, ActionKind::Proxy), expected.map(|(at, code)| (at.to_owned(), code)));
}

#[test]
fn what_an_action_has_no_use_for_is_refused() {
    let keep = ActionKind::Redirect { keep_path: true };
    let rewrite = RuleText { path: "/", replace_prefix: Some("/new"), ..RuleText::default() };
    let set = |name| ChangesText { set: vec![(name, "1")], remove: &[] };
    let request = RuleText { path: "/", request_headers: set("x-a"), ..RuleText::default() };
    let location = RuleText { path: "/", response_headers: set("location"), ..RuleText::default() };
    for (text, action, expected) in [
        (&rewrite, ActionKind::Proxy, None),
        (&rewrite, keep, None),
        (&rewrite, ActionKind::Redirect { keep_path: false }, Some("/replace_prefix")),
        (&rewrite, ActionKind::Static, Some("/replace_prefix")),
        (&request, ActionKind::Proxy, None),
        (&request, keep, Some("/request_headers")),
        (&request, ActionKind::Static, Some("/request_headers")),
        (&location, ActionKind::Proxy, None),
        (&location, keep, Some("/response_headers")),
    ] {
        let found = faults(text, action);
        assert_eq!(found.first().map(|(at, _)| at.as_str()), expected, "{text:?} {action:?}");
    }
}

#[test]
fn hsts_goes_together_or_not_at_all() {
    for (max_age_seconds, include_subdomains, preload, https_redirect, expected) in [
        (None, false, false, true, vec![]),
        (Some(0), false, false, true, vec![]),
        (Some(0), false, false, false, vec![]),
        (Some(1), false, false, false, vec![]),
        (Some(1), true, false, false, vec![]),
        (None, true, false, true, vec!["hsts_include_subdomains"]),
        (Some(0), true, false, true, vec!["hsts_include_subdomains"]),
        (Some(31_536_000), true, true, true, vec![]),
        (Some(31_535_999), true, true, true, vec!["hsts_preload"]),
        (Some(31_536_000), false, true, true, vec!["hsts_preload"]),
        (Some(31_536_000), true, true, false, vec!["hsts_preload"]),
        (None, true, true, true, vec!["hsts_include_subdomains", "hsts_preload"]),
        (Some(0), true, true, true, vec!["hsts_include_subdomains", "hsts_preload"]),
        (Some(63_072_001), false, false, true, vec!["hsts_max_age_seconds"]),
    ] {
        let wish = HstsWish { max_age_seconds, include_subdomains, preload, https_redirect };
        let found: Vec<_> = wish.faults().into_iter().map(|(field, _)| field).collect();
        assert_eq!(found, expected, "{wish:?}");
    }
}

#[test]
fn bounds_are_bounds() {
    let changes = |count: usize, bytes: usize| {
        let names: Vec<String> = (0..count).map(|number| format!("x-{number:03}")).collect();
        let value = "v".repeat(bytes);
        let set = names.iter().map(|name| (name.as_str(), value.as_str())).collect();
        let text =
            RuleText { path: "/", response_headers: ChangesText { set, remove: &[] }, ..RuleText::default() };
        faults(&text, ActionKind::Static)
    };
    assert_eq!(changes(32, 251), []);
    assert_eq!(changes(32, 252), [("/response_headers".to_owned(), "too_large")]);
    assert_eq!(changes(33, 0), [("/response_headers".to_owned(), "too_many")]);
    let names: Vec<String> = (0..9).map(|number| format!("x-{number}")).collect();
    let headers = |count| names.iter().take(count).map(|name| (name.as_str(), None)).collect();
    let asks = |count| {
        faults(&RuleText { path: "/", headers: headers(count), ..RuleText::default() }, ActionKind::Proxy)
    };
    assert_eq!((asks(8), asks(9)), (vec![], vec![("/headers".to_owned(), "too_many")]));
    let methods: Vec<String> = (b'A'..=b'Q').map(|letter| format!("X{}", char::from(letter))).collect();
    let takes = |count: usize| {
        faults(&RuleText { path: "/", methods: &methods[..count], ..RuleText::default() }, ActionKind::Proxy)
    };
    assert_eq!((takes(16), takes(17)), (vec![], vec![("/methods".to_owned(), "too_many")]));
}

#[test]
fn what_is_removed_goes_before_what_is_set() {
    let remove = ["X-Old".to_owned()];
    let set = vec![("x-new", "2")];
    let text =
        RuleText { path: "/", request_headers: ChangesText { set, remove: &remove }, ..RuleText::default() };
    let mut headers = HeaderMap::new();
    for (name, value) in [("x-old", "1"), ("x-old", "2"), ("x-new", "0"), ("x-new", "1"), ("x-kept", "1")] {
        headers.append(name, value.parse().unwrap());
    }
    rule(&text).request_headers().unwrap().apply(&mut headers);
    assert_eq!(headers.len(), 2);
    assert_eq!((headers["x-new"].as_bytes(), headers["x-kept"].as_bytes()), (&b"2"[..], &b"1"[..]));
}
