//! Why a command failed, what to try next, and with which exit code it ends.

use std::fmt::Display;
use std::path::Path;

use portico_api::v1::client::ClientError;
use portico_prober::chain_text;

/// A command that did not do what it was asked.
///
/// Exit codes: 0 done, 1 failed, 2 wrong usage (clap ends with it too), 3 not found, 4 not ready yet.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) text: String,
    pub(crate) next: Option<Next>,
    pub(crate) code: u8,
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
        Self { text: text.into(), next: None, code: 1 }
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

    pub(crate) fn file(path: &Path, error: impl Display) -> Self {
        Self::failed(format!("{}: {error}", path.display()))
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let text = chain_text(&error);
        let failure = Self::failed(text);
        match (error.status(), &error) {
            (Some(401), _) => failure.next_text(
                "give a token: --token-file FILE, PORTICO_TOKEN, or --context DIR; the control plane's first start \
                 writes the operator's token into its operator_token_file",
            ),
            (Some(403), _) => failure.next_text("use the operator's token: --token-file FILE or PORTICO_TOKEN"),
            (Some(404), _) => Self { code: 3, ..failure },
            (Some(503), _) => Self { code: 4, ..failure },
            (_, ClientError::Connect { .. }) => {
                failure.next("control-plane run --config FILE   (or say where it is: --api URL, PORTICO_API, --context DIR)")
            }
            _ => failure,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::failed(format!("{error:#}"))
    }
}
