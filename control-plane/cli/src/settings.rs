//! Where the API is, with which token, and how answers are printed.
//!
//! A flag goes before the environment, the environment before the context folder. A context is what the quickstart (or
//! an operator) leaves beside a running system, so that commands work as they are printed.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use portico_api::v1::client::Client;
use serde::{Deserialize, Serialize};

use crate::failure::{Failure, Outcome};
use crate::output::Format;

/// The file's name in a context folder.
pub(crate) const CONTEXT_FILE: &str = "context.toml";

const API_DEFAULT: &str = "http://127.0.0.1:7070";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SettingsArgs {
    /// The control plane's API [default: http://127.0.0.1:7070, or the context's]
    #[arg(long, global = true, env = "PORTICO_API", value_name = "URL", display_order = 900)]
    api: Option<String>,
    /// A file with the API token; PORTICO_TOKEN may hold the token itself
    #[arg(long, global = true, value_name = "FILE", display_order = 901)]
    token_file: Option<PathBuf>,
    /// Trust anchors (PEM), for an API behind https and for `check`
    #[arg(long, global = true, value_name = "FILE", display_order = 902)]
    roots: Option<PathBuf>,
    /// A folder with a context.toml, such as portico-quickstart
    #[arg(long, global = true, env = "PORTICO_CONTEXT", value_name = "DIR", display_order = 903)]
    context: Option<PathBuf>,
    /// How answers are printed; json: one document, and a failure as one RFC 9457 problem on standard error
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        default_value_t,
        value_name = "FORMAT",
        display_order = 904
    )]
    output: Format,
}

impl SettingsArgs {
    pub(crate) fn format(&self) -> Format {
        self.output
    }
}

/// The format that a command line asks for which as a whole makes no sense.
pub(crate) fn format_of(words: impl Iterator<Item = String>) -> Format {
    let mut words = words;
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "-o" | "--output" => words.next(),
            "--" => break,
            _ => word.strip_prefix("--output=").or_else(|| word.strip_prefix("-o")).map(str::to_owned),
        };
        if value.is_some_and(|value| value.trim_start_matches('=') == "json") {
            return Format::Json;
        }
    }
    Format::Table
}

/// What the arguments, the environment and the context come to.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) format: Format,
    pub(crate) context: Option<Context>,
    args: SettingsArgs,
}

/// `context.toml`. Paths are relative to its folder.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) api: String,
    pub(crate) token_file: PathBuf,
    /// Trust anchors of the certificates that the edges serve.
    pub(crate) roots: Option<PathBuf>,
    /// Where edges serve https; `check` asks them when no `--connect` is given.
    #[serde(default)]
    pub(crate) edges_https: Vec<SocketAddr>,
    /// Where edges serve http; `shadow` points there.
    #[serde(default)]
    pub(crate) edges_http: Vec<SocketAddr>,
    /// The quickstart's DNS stub, which `--publish-records` fills.
    pub(crate) dns_stub: Option<SocketAddr>,
}

impl Context {
    /// # Errors
    /// When the folder has no readable `context.toml`.
    pub(crate) fn read(folder: &Path) -> Outcome<Self> {
        let file = folder.join(CONTEXT_FILE);
        let text = std::fs::read_to_string(&file).map_err(|error| {
            Failure::file(&file, error)
                .next_text("--context takes the folder that `portico quickstart` named")
        })?;
        let mut context: Self = toml::from_str(&text).map_err(|error| Failure::file(&file, error))?;
        context.token_file = folder.join(context.token_file);
        context.roots = context.roots.map(|roots| folder.join(roots));
        Ok(context)
    }
}

impl Settings {
    pub(crate) fn new(args: SettingsArgs) -> Outcome<Self> {
        let context = args.context.as_deref().map(Context::read).transpose()?;
        Ok(Self { format: args.output, context, args })
    }

    /// Where visitors reach the edges over https: a context may have them on another port than the usual one.
    pub(crate) fn https_port(&self) -> u16 {
        let edges = self.context.iter().flat_map(|context| &context.edges_https);
        edges.map(SocketAddr::port).next().unwrap_or(443)
    }

    /// The API client of this invocation.
    pub(crate) fn client(&self) -> Outcome<Client> {
        let context = self.context.as_ref();
        let api = self.args.api.clone().or_else(|| context.map(|c| c.api.clone()));
        let api = api.unwrap_or_else(|| API_DEFAULT.to_owned());
        let roots = match &self.args.roots {
            Some(file) => Some(read_bounded(file)?),
            None => None,
        };
        Ok(Client::new(&api, Some(self.token()?.trim()), roots.as_deref())?)
    }

    /// Whether an API was named at all: `check` compares with it only then.
    pub(crate) fn names_an_api(&self) -> bool {
        self.args.api.is_some() || self.context.is_some()
    }

    /// The PEM file to judge chains by: the flag's, or the context's.
    pub(crate) fn roots_file(&self) -> Option<&Path> {
        self.args.roots.as_deref().or_else(|| self.context.as_ref()?.roots.as_deref())
    }

    fn token(&self) -> Outcome<String> {
        let from_context = self.context.as_ref().map(|context| context.token_file.as_path());
        let file = match (&self.args.token_file, std::env::var("PORTICO_TOKEN")) {
            (Some(file), _) => file.as_path(),
            (None, Ok(token)) => return Ok(token),
            (None, Err(_)) => from_context.ok_or_else(|| {
                Failure::usage("no API token given")
                    .next_text("--token-file FILE, PORTICO_TOKEN, or --context DIR")
            })?,
        };
        let text = read_bounded(file)?;
        String::from_utf8(text).map_err(|_| Failure::file(file, "holds no token"))
    }
}

/// A small file of the operator's: a token, trust anchors.
pub(crate) fn read_bounded(file: &Path) -> Outcome<Vec<u8>> {
    const BYTES_MAX: u64 = 4 << 20;
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|open| open.take(BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| Failure::file(file, error))?;
    Ok(bytes)
}
