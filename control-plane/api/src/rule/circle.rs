//! Redirects that lead a browser back to where it was sent away from.

use http::Method;

use super::{RequestPath, Rule};

/// Where a rule redirects to on its own host.
#[derive(Clone, Copy, Debug)]
pub struct OwnTarget<'a> {
    /// Of the redirect's URL.
    pub path: &'a str,
    /// The request's path follows.
    pub keep_path: bool,
}

/// The rules of one host, in their order, that answer a redirect to what they redirect to: no browser ever gets anywhere.
/// Circles of several rules or hosts are not seen, and a rule that an earlier one may keep from it is let pass.
pub fn circular<'a>(rules: impl IntoIterator<Item = (&'a Rule, Option<OwnTarget<'a>>)>) -> Vec<usize> {
    let rules: Vec<_> = rules.into_iter().collect();
    let returns = |index: &usize| {
        let (rule, Some(target)) = rules[*index] else { return false };
        let Some(location) = location(rule, target) else { return false };
        let path = RequestPath::new(&location);
        let gets = rule.methods().is_empty() || rule.methods().contains(&Method::GET);
        let before = rules[..*index].iter().any(|(earlier, _)| earlier.path.rest(&path).is_some());
        gets && !before && rule.path.rest(&path).is_some()
    };
    (0..rules.len()).filter(returns).collect()
}

/// The path that a request for the rule's own path is sent to.
fn location(rule: &Rule, target: OwnTarget<'_>) -> Option<String> {
    if !target.keep_path {
        return Some(target.path.to_owned());
    }
    let kept = match rule.replacement() {
        None => rule.path.as_str().to_owned(),
        Some(replacement) => replacement.with("").ok()?,
    };
    Some(format!("{}{kept}", target.path.trim_end_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{ActionKind, RuleText};

    fn rule(path: &str, exact: bool, replace_prefix: Option<&str>, methods: &[String]) -> Rule {
        let text = RuleText { path, exact, replace_prefix, methods, ..RuleText::default() };
        Rule::parse(&text, ActionKind::Redirect { keep_path: true }).unwrap()
    }

    #[test]
    fn a_redirect_to_itself_is_found_and_one_that_gets_somewhere_is_not() {
        let target = |path, keep_path| OwnTarget { path, keep_path };
        let any: &[String] = &[];
        for (path, exact, replace, to, circles) in [
            ("/", false, None, target("/", true), true),
            ("/", false, None, target("/", false), true),
            ("/", false, None, target("/new", true), true),
            ("/old", false, None, target("/", true), true),
            ("/old", false, None, target("/old/x", false), true),
            ("/old", false, None, target("/new", false), false),
            ("/old", false, Some("/new"), target("/", true), false),
            ("/old", false, Some("/old/x"), target("/", true), true),
            ("/", true, None, target("/home", false), false),
            ("/", true, None, target("/", false), true),
        ] {
            let rule = rule(path, exact, replace, any);
            assert_eq!(circular([(&rule, Some(to))]).len(), usize::from(circles), "{path} to {to:?}");
            assert!(circular([(&rule, None)]).is_empty());
        }
        let post = ["POST".to_owned()];
        assert!(circular([(&rule("/", false, None, &post), Some(target("/", true)))]).is_empty());
        // What an earlier rule takes is not this one's circle.
        let (first, rest) = (rule("/new", false, None, any), rule("/", false, None, any));
        assert!(circular([(&first, None), (&rest, Some(target("/new", false)))]).is_empty());
    }
}
