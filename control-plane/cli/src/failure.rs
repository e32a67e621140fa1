//! Why a command failed, what to try next, and with which exit code it ends.

use std::borrow::Cow;
use std::fmt::Display;
use std::path::Path;

use portico_api::v1::client::ClientError;
use portico_api::v1::{FieldError, Problem};
use portico_prober::chain_text;
use serde::Serialize;

/// A command that did not do what it was asked.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage (clap ends with it too), 3 not found, 4 not ready yet.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    pub(crate) next: Option<Next>,
    pub(crate) code: u8,
    /// What the API said, when it is the API's refusal.
    problem: Option<Box<Problem>>,
}

/// What the user may try.
#[derive(Debug)]
pub(crate) enum Next {
    /// Arguments of this program; the program's name and its context are put before.
    Portico(String),
    /// Something else.
    Text(String),
}

pub(crate) type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    pub(crate) fn failed(text: impl Into<String>) -> Self {
        Self { text: text.into(), next: None, code: 1, problem: None }
    }

    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { code: 2, ..Self::failed(text) }
    }

    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self { code: 3, ..Self::failed(text) }
    }

    pub(crate) fn not_ready(text: impl Into<String>) -> Self {
        Self { code: 4, ..Self::failed(text) }
    }

    pub(crate) fn next(self, arguments: impl Into<String>) -> Self {
        Self { next: Some(Next::Portico(arguments.into())), ..self }
    }

    pub(crate) fn next_text(self, text: impl Into<String>) -> Self {
        Self { next: Some(Next::Text(text.into())), ..self }
    }

    /// Puts what the failure is about before its text.
    pub(crate) fn about(self, subject: impl Display) -> Self {
        Self { text: format!("{subject}: {}", self.text), ..self }
    }

    /// The status of the API's refusal.
    pub(crate) fn status(&self) -> Option<u16> {
        self.problem.as_ref().map(|problem| problem.status)
    }

    /// The stable code of the API's refusal.
    pub(crate) fn problem_code(&self) -> Option<&str> {
        self.problem.as_ref().map(|problem| problem.code.as_str())
    }

    /// What to try, as a line for a shell.
    pub(crate) fn next_line(&self) -> Option<String> {
        match self.next.as_ref()? {
            Next::Portico(arguments) => Some(format!("{} {arguments}", crate::invocation())),
            Next::Text(text) => Some(text.clone()),
        }
    }

    /// The failure as an RFC 9457 problem: the API's own words where it refused, else the same shape without a status.
    pub(crate) fn document(&self) -> ProblemDocument<'_> {
        let (code, title) = match self.code {
            2 => ("usage", "Wrong usage"),
            3 => ("not_found", "Not found"),
            4 => ("not_ready", "Not ready yet"),
            _ => ("failed", "Failed"),
        };
        let (exit_code, next) = (self.code, self.next_line());
        match &self.problem {
            Some(problem) => ProblemDocument {
                type_uri: Cow::Borrowed(&problem.type_uri),
                title: &problem.title,
                status: Some(problem.status),
                detail: &problem.detail,
                code: &problem.code,
                request_id: Some(&problem.request_id),
                errors: &problem.errors,
                exit_code,
                next,
            },
            None => ProblemDocument {
                type_uri: Cow::Owned(format!("/errors/{code}")),
                title,
                status: None,
                detail: &self.text,
                code,
                request_id: None,
                errors: &[],
                exit_code,
                next,
            },
        }
    }

    pub(crate) fn file(path: &Path, error: impl Display) -> Self {
        Self::failed(format!("{}: {error}", path.display()))
    }
}

/// A failure as `-o json` prints it: RFC 9457 with two extension members, `exit_code` and `next`.
#[derive(Debug, Serialize)]
pub(crate) struct ProblemDocument<'a> {
    #[serde(rename = "type")]
    type_uri: Cow<'a, str>,
    title: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    detail: &'a str,
    code: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    errors: &'a [FieldError],
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        #[expect(clippy::wildcard_enum_match_arm, reason = "only one kind holds a problem")]
        let problem = match &error {
            ClientError::Problem(problem) => Some(problem.clone()),
            _ => None,
        };
        let text = problem.as_deref().map_or_else(|| chain_text(&error), with_flags);
        let failure = Self { problem, ..Self::failed(text) };
        match (error.status(), &error) {
            (Some(401), _) => failure.next_text(
                "give a token: --token-file FILE, PORTICO_TOKEN, or --context DIR; the control plane's first start \
                 writes the operator's token into its operator_token_file, and one more with --new-operator-token",
            ),
            (Some(403), _) => failure.next_text("use the operator's token: --token-file FILE or PORTICO_TOKEN"),
            (Some(404), _) => Self { code: 3, ..failure },
            // The API says what is wrong with what was given.
            (Some(400 | 422), _) => Self { code: 2, ..failure },
            (Some(503), _) => Self { code: 4, ..failure },
            (_, ClientError::Connect { .. }) => {
                failure.next("control-plane run --config FILE   (or say where it is: --api URL, PORTICO_API, --context DIR)")
            }
            _ => failure,
        }
    }
}

/// Ends of pointers, and the flags that they stand for.
const FLAGS: [(&str, &str); 47] = [
    ("/action/status", "--status"),
    ("/action/content_type", "--content-type"),
    ("/replace_prefix", "--replace-prefix"),
    ("/hsts_max_age_seconds", "--hsts-max-age"),
    ("/maintenance/text", "--text"),
    ("/maintenance/retry_after_seconds", "--retry-after"),
    ("/action/tls/server_name", "--origin-server-name"),
    ("/action/tls/ca_pem", "--origin-ca"),
    ("/action/tls/client_certificate", "--origin-client-certificate"),
    ("/action/cache/default_ttl_seconds", "--cache-ttl"),
    ("/action/compression/min_bytes", "--compress-min"),
    ("/hsts_include_subdomains", "--hsts-include-subdomains"),
    ("/hsts_preload", "--hsts-preload"),
    ("/https_redirect", "--https-redirect"),
    ("/issue_certificates", "--issue-certificates"),
    ("/minimum_tls", "--minimum-tls"),
    ("/http2", "--http2"),
    ("/http3", "--http3"),
    ("/early_data", "--early-data"),
    ("/client_certificates/ca_pem", "--client-ca"),
    ("/client_certificates", "--client-certificates"),
    ("/limits/requests_per_second", "--requests-per-second"),
    ("/limits/exchanges", "--exchanges"),
    ("/limits/bytes_per_second", "--bytes-per-second"),
    ("/limits/request_body_bytes", "--request-body-bytes"),
    ("/limits/connections", "--connections"),
    ("/limits/cache_bytes", "--cache-bytes"),
    ("/issuers", "--issuer"),
    ("/issuer", "--issuer"),
    ("/backup_certificates", "--backup-certificates"),
    ("/backup_certificate", "--backup-certificate"),
    ("/action/origin", "--proxy"),
    ("/url", "the URL"),
    ("/kinds", "--kind"),
    ("/label", "--label"),
    ("/action/to", "--redirect"),
    ("/action/body", "--static"),
    ("/path_prefix", "--path"),
    ("/until", "--until"),
    ("/reason", "--reason"),
    ("/hostname", "the hostname"),
    ("/name", "the name"),
    ("/domains_max", "--domains-max"),
    ("/ttl_seconds", "--ttl"),
    ("/cells", "--cell"),
    ("/cidr", "--egress-grant"),
    ("/ports", "--egress-grant"),
];
/// Of options that are repeated: what stands before the number or the name.
const REPEATED: [(&str, &str); 15] = [
    ("/action/origins/", "--proxy"),
    ("/kinds/", "--kind"),
    ("/action/cache/query/ignore/", "--cache-ignore"),
    ("/action/compression/content_types/", "--compress-type"),
    ("/urls/", "--url"),
    ("/prefixes/", "--prefix"),
    ("/hosts/", "--host"),
    ("/tags/", "--tag"),
    ("/issuers/", "--issuer"),
    ("/methods/", "--method"),
    ("/headers/", "--header"),
    ("/request_headers/set/", "--set-request-header"),
    ("/request_headers/remove/", "--remove-request-header"),
    ("/response_headers/set/", "--set-response-header"),
    ("/response_headers/remove/", "--remove-response-header"),
];

/// The problem's text with the flags of this program in the place of pointers into a body that nobody has seen.
fn with_flags(problem: &Problem) -> String {
    /// Flags are about one route, which the first fault is in; what is wrong with others keeps its pointer.
    fn route(pointer: &str) -> Option<&str> {
        pointer.strip_prefix("/routes/")?.split('/').next()
    }
    let mut text = problem.to_string();
    let first = problem.errors.first().and_then(|error| route(&error.pointer));
    for error in problem.errors.iter().filter(|error| route(&error.pointer) == first) {
        let repeated = REPEATED.iter().find(|(part, _)| error.pointer.contains(part));
        let flag = repeated.or_else(|| FLAGS.iter().find(|(end, _)| error.pointer.ends_with(end)));
        if let Some((_, flag)) = flag {
            text = text.replace(&format!("{}:", error.pointer), &format!("{flag}:"));
        }
    }
    text
}

impl From<clap::Error> for Failure {
    /// Its first paragraph: what is wrong, without the usage.
    fn from(error: clap::Error) -> Self {
        let text = error.render().to_string();
        let first = text.split("\n\n").next().unwrap_or_default();
        Self::usage(first.trim_start_matches("error: ").trim()).next("--help")
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // A cause whose text its consequence quotes is said once.
        Self::failed(chain_text(error.as_ref()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_refuses_is_told_by_the_name_of_its_option() {
        for (pointer, flag) in [
            ("/routes/0/action/tls/server_name", "--origin-server-name"),
            ("/routes/0/action/origins/1/url", "--proxy"),
            ("/routes/0/request_headers/set/via", "--set-request-header"),
            ("/limits/requests_per_second", "--requests-per-second"),
            ("/hsts_preload", "--hsts-preload"),
            ("/early_data", "--early-data"),
            ("/scope/issuer", "--issuer"),
            ("/backup_certificate", "--backup-certificate"),
            ("/hosts/0", "--host"),
            ("/urls/0", "--url"),
            ("/url", "the URL"),
            ("/kinds/0", "--kind"),
            ("/name", "the name"),
        ] {
            let error = FieldError {
                pointer: pointer.to_owned(),
                code: "wrong".to_owned(),
                message: "is wrong".to_owned(),
            };
            let problem = Problem {
                type_uri: "/errors/invalid".to_owned(),
                title: "Invalid".to_owned(),
                status: 422,
                detail: format!("{pointer}: is wrong"),
                code: "invalid".to_owned(),
                request_id: String::new(),
                errors: vec![error],
            };
            assert_eq!(with_flags(&problem), format!("{flag}: is wrong (invalid)"));
        }
    }
}
