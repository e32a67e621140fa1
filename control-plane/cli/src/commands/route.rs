//! `portico domain route NAME`: what happens to a domain's requests, changed while it is served.

use portico_api::v1::client::Client;
use portico_api::v1::{Action, Proxy, Route, WeightedOrigin};
use serde_json::json;

use crate::commands::domain::{WaitArgs, find, with_grant};
use crate::failure::{Failure, Outcome};
use crate::revision::on_newest;
use crate::settings::Settings;
use crate::shell::shell_word;

#[derive(Debug, clap::Args)]
pub(crate) struct RouteArgs {
    /// Hostname or id
    domain: String,
    #[command(flatten)]
    action: ActionArgs,
    /// Take the route of --path away; its requests go by a shorter path's route then
    #[arg(long, group = "ActionArgs")]
    remove: bool,
    /// Of requests below this path; the longest path that matches is taken
    #[arg(long, default_value = "/")]
    path: String,
    #[command(flatten)]
    wait: WaitArgs,
}

/// What a domain does with requests.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct ActionArgs {
    /// Pass requests to this origin: http://host[:port] or https://host[:port]; several times: to one of these
    #[arg(long, value_name = "URL")]
    proxy: Vec<String>,
    /// Redirect (308) to this URL
    #[arg(long, value_name = "URL")]
    redirect: Option<String>,
    /// Answer with this text
    #[arg(long = "static", value_name = "TEXT")]
    fixed: Option<String>,
}

impl ActionArgs {
    pub(crate) fn action(self) -> Action {
        match (&*self.proxy, self.redirect, self.fixed) {
            ([origin], _, _) => Action::proxy(origin),
            (origins @ [_, ..], _, _) => {
                let origins = origins.iter().map(|url| WeightedOrigin { url: url.clone(), weight: 1 });
                Action::Proxy(Box::new(Proxy { origins: origins.collect(), ..Proxy::default() }))
            }
            ([], Some(to), _) => Action::Redirect { to, status: 308, keep_path: true, keep_query: None },
            ([], None, body) => Action::Static {
                status: 200,
                content_type: "text/plain; charset=utf-8".to_owned(),
                body: body.unwrap_or_default(),
            },
        }
    }
}

pub(crate) async fn run(settings: &Settings, client: &Client, args: RouteArgs) -> Outcome {
    let RouteArgs { domain, action, remove, path, wait } = args;
    let action = if remove { None } else { Some(action.action()) };
    let changed = on_newest(async || {
        let found = find(client, &domain).await?;
        let tenant = found.tenant_name.clone();
        let routes = changed(found.spec.routes, &path, action.clone()).map_err(|text| {
            Failure::not_found(format!("domain {domain}: {text}"))
                .next(format!("domain show {}", shell_word(&domain)))
        })?;
        let patched = client.patch_domain(found.id, &json!({ "routes": routes }), Some(found.revision)).await;
        patched.map_err(|error| with_grant(Failure::from(error).about(format!("domain {domain}")), &tenant))
    });
    wait.show(settings, client, changed.await?).await
}

/// The routes with that of `path` put in its place, or taken away. The first that matches is taken, so a new one goes before
/// those of shorter paths.
fn changed(mut routes: Vec<Route>, path: &str, action: Option<Action>) -> Result<Vec<Route>, String> {
    let place = routes.iter().position(|route| route.path_prefix == path);
    match (place, action) {
        (Some(place), Some(action)) => routes[place].action = action,
        (Some(place), None) => drop(routes.remove(place)),
        (None, None) => return Err(format!("there is no route of the path {path}")),
        (None, Some(action)) => {
            let shorter = routes.iter().position(|other| other.path_prefix.len() < path.len());
            routes.insert(shorter.unwrap_or(routes.len()), Route::new(path, action));
        }
    }
    Ok(routes)
}

pub(crate) fn action_text(action: &Action) -> String {
    match action {
        Action::Proxy(proxy) => proxy_text(proxy),
        Action::Redirect { to, status, keep_path, keep_query } => {
            let kept = match (*keep_path, keep_query.unwrap_or(*keep_path)) {
                (true, true) => ", path and query kept",
                (true, false) => ", path kept",
                (false, true) => ", query kept",
                (false, false) => "",
            };
            format!("redirect {status} to {to}{kept}")
        }
        Action::Static { status, content_type, body } => {
            format!("answer {status}, {content_type}, {} bytes", body.len())
        }
    }
}

fn proxy_text(proxy: &Proxy) -> String {
    let origins = proxy.targets();
    let equal = origins.windows(2).all(|pair| pair[0].weight == pair[1].weight);
    let texts: Vec<String> = origins
        .into_iter()
        .map(|WeightedOrigin { url, weight }| if equal { url } else { format!("{url} (weight {weight})") })
        .collect();
    let host = proxy.host_header.as_ref().map_or(String::new(), |host| format!(" as {host}"));
    format!("proxy to {}{host}", texts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(origin: &str) -> Action {
        Action::proxy(origin)
    }

    fn texts(routes: &[Route]) -> Vec<String> {
        let text = |route: &Route| format!("{} {}", route.path_prefix, action_text(&route.action));
        routes.iter().map(text).collect()
    }

    #[test]
    fn a_longer_path_is_asked_before_a_shorter_one_and_others_stay_as_they_are() {
        let mut routes = Vec::new();
        for (path, origin) in
            [("/", "http://a"), ("/api", "http://b"), ("/api/v1", "http://c"), ("/x", "http://d")]
        {
            routes = changed(routes, path, Some(proxy(origin))).unwrap();
        }
        let paths: Vec<&str> = routes.iter().map(|route| route.path_prefix.as_str()).collect();
        assert_eq!(paths, ["/api/v1", "/api", "/x", "/"]);
        routes = changed(routes, "/", Some(proxy("http://new"))).unwrap();
        routes = changed(routes, "/api", None).unwrap();
        assert_eq!(
            texts(&routes),
            ["/api/v1 proxy to http://c", "/x proxy to http://d", "/ proxy to http://new"]
        );
        changed(routes, "/none", None).unwrap_err();
    }
}
