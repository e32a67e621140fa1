//! Which requests a route takes and what it changes, as options.

use std::cmp::Reverse;

use portico_api::v1::{Action, HeaderChanges, HeaderCondition, Redirect, Route, StaticAnswer};

use crate::failure::{Failure, Outcome};

/// A route's rule.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct RuleArgs {
    /// Of requests below this path. The first rule that matches is taken; this one is put before those of shorter paths
    #[arg(long, default_value = "/")]
    path: String,
    /// Of requests to --path itself alone
    #[arg(long)]
    exact: bool,
    /// Of requests by this method, such as POST; GET stands for HEAD too; repeatable
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// Of requests with this header, of any value or of this one; repeatable, all have to be there
    #[arg(long = "header", value_name = "NAME[=VALUE]", value_parser = condition)]
    headers: Vec<HeaderCondition>,
    /// Stands in the place of --path in what the origin (or the redirect's target) gets
    #[arg(long, value_name = "PATH")]
    replace_prefix: Option<String>,
    /// Sent to the origin; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_value)]
    set_request_header: Vec<(String, String)>,
    /// Not sent to the origin; repeatable
    #[arg(long, value_name = "NAME")]
    remove_request_header: Vec<String>,
    /// Sent to the visitor; repeatable
    #[arg(long, value_name = "NAME=VALUE", value_parser = name_value)]
    set_response_header: Vec<(String, String)>,
    /// Not sent to the visitor; repeatable
    #[arg(long, value_name = "NAME")]
    remove_response_header: Vec<String>,
}

/// How an action answers, beyond what it is.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AnswerArgs {
    /// Of a redirect (301, 302, 303, 307, 308) or of --static [default: 308, 200]
    #[arg(long, conflicts_with = "proxy")]
    status: Option<u16>,
    /// Redirect every path to the same URL
    #[arg(long, requires = "redirect")]
    drop_path: bool,
    /// Leave the query out of a redirect
    #[arg(long, requires = "redirect")]
    drop_query: bool,
    /// Of --static [default: text/plain; charset=utf-8]
    #[arg(long, value_name = "TYPE", requires = "fixed")]
    content_type: Option<String>,
}

impl RuleArgs {
    pub(crate) fn route(&self, action: Action) -> Route {
        let changes = |set: &[(String, String)], remove: &[String]| HeaderChanges {
            set: set.iter().cloned().collect(),
            remove: remove.to_vec(),
        };
        Route {
            exact: self.exact,
            methods: self.methods.clone(),
            headers: self.headers.clone(),
            replace_prefix: self.replace_prefix.clone(),
            request_headers: changes(&self.set_request_header, &self.remove_request_header),
            response_headers: changes(&self.set_response_header, &self.remove_response_header),
            ..Route::new(&self.path, action)
        }
    }

    /// What a removal is not told: it takes the route as it is.
    ///
    /// # Errors
    /// A usage error, when something is to be changed as well.
    pub(crate) fn only_chooses(&self) -> Outcome {
        let changed = self.replace_prefix.is_some()
            || !(self.set_request_header.is_empty() && self.remove_request_header.is_empty())
            || !(self.set_response_header.is_empty() && self.remove_response_header.is_empty());
        if changed {
            Err(Failure::usage("--remove takes a route away; it changes nothing of it"))
        } else {
            Ok(())
        }
    }
}

impl AnswerArgs {
    pub(crate) fn of(&self, action: Action) -> Action {
        match action {
            Action::Redirect(redirect) => Action::Redirect(Redirect {
                status: self.status.unwrap_or(redirect.status),
                keep_path: !self.drop_path,
                keep_query: (self.drop_path != self.drop_query).then_some(!self.drop_query),
                ..redirect
            }),
            Action::Static(answer) => Action::Static(StaticAnswer {
                status: self.status.unwrap_or(answer.status),
                content_type: self.content_type.clone().unwrap_or(answer.content_type),
                ..answer
            }),
            other @ Action::Proxy(_) => other,
        }
    }
}

/// Whether two routes take the same requests.
pub(crate) fn same_rule(one: &Route, other: &Route) -> bool {
    let rule = |route: &Route| {
        (route.path_prefix.clone(), route.exact, route.methods.clone(), route.headers.clone())
    };
    rule(one) == rule(other)
}

/// The order in which routes are asked: a longer path first, then the narrower rule. What takes all requests of another is
/// never before it.
pub(crate) fn narrowness(route: &Route) -> impl Ord + use<> {
    let methods = if route.methods.is_empty() { usize::MAX } else { route.methods.len() };
    let equals = route.headers.iter().filter(|header| header.equals.is_some()).count();
    (
        route.path_prefix.trim_end_matches('/').len(),
        route.exact,
        route.headers.len(),
        equals,
        Reverse(methods),
    )
}

/// The rule on one line.
pub(crate) fn rule_text(route: &Route) -> String {
    let mut text = route.path_prefix.clone();
    if route.exact {
        text.push_str(" exactly");
    }
    if !route.methods.is_empty() {
        text.push_str(&format!(" {}", route.methods.join(",")));
    }
    for header in &route.headers {
        let value = header.equals.as_ref().map_or(String::new(), |value| format!("={value}"));
        text.push_str(&format!(" {}{value}", header.name));
    }
    text
}

/// What the route changes, behind its action.
pub(crate) fn changes_text(route: &Route) -> String {
    let mut text = String::new();
    if let Some(prefix) = &route.replace_prefix {
        text.push_str(&format!(", path becomes {prefix}"));
    }
    for (side, changes) in [("request", &route.request_headers), ("response", &route.response_headers)] {
        let set = changes.set.keys().map(|name| format!("+{name}"));
        let removed = changes.remove.iter().map(|name| format!("-{name}"));
        let names: Vec<String> = set.chain(removed).collect();
        if !names.is_empty() {
            text.push_str(&format!(", {side} {}", names.join(" ")));
        }
    }
    text
}

fn condition(text: &str) -> Result<HeaderCondition, String> {
    let (name, equals) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (text, None),
    };
    Ok(HeaderCondition { name: name.to_owned(), equals })
}

fn name_value(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    Ok((name.to_owned(), value.to_owned()))
}
