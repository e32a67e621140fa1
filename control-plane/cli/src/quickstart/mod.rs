//! `portico quickstart`: the whole system on loopback, with a test CA, in one folder.
//!
//! Every part is a process of its own: this program again, with another subcommand. Each child's standard input is a pipe
//! that the quickstart holds, and a child ends when that pipe does ([`lifeline`]), so no child outlives its parent, however
//! the parent ended. Nothing here is simulated: names are claimed and proved by TXT records in the DNS stub, the CA really
//! validates over the edges' sockets, certificates reach the edges over the distribution stream.
//!
//! Absent from builds without the feature `quickstart`, as is the test CA.

mod addresses;
mod children;
mod configuration;
mod folder;
pub(crate) mod lifeline;
mod lines;
mod onboarding;
pub(crate) mod origin;
mod script;
mod wait;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use portico_api::v1::client::Client;

use crate::clock;
use crate::failure::{Failure, Outcome};
use crate::output::line;
use crate::settings::Context;
use crate::shell::shell_word;
use addresses::{AddressArgs, Addresses};
use children::{Children, Part};
use folder::Folder;
use onboarding::Onboarded;

/// From the first connect to a part until it answers.
const START_DEADLINE: Duration = Duration::from_secs(30);

#[derive(Debug, clap::Args)]
pub(crate) struct QuickstartArgs {
    /// The one folder that holds all files; made anew at each start
    #[arg(long, default_value = "portico-quickstart", value_name = "DIR")]
    dir: PathBuf,
    /// Run every printed line, check what comes back, and end: 0, or what failed
    #[arg(long)]
    script: bool,
    #[command(flatten)]
    addresses: AddressArgs,
}

pub(crate) async fn run(args: QuickstartArgs) -> Outcome {
    let start = clock::now();
    let folder = Folder::claim(&args.dir)?;
    let addresses = Addresses::new(&args.addresses)?;
    addresses.assert_free().await?;
    let mut children = Children::new(folder.path().to_owned());
    let worked = tokio::select! {
        worked = work(folder, addresses, &mut children, args.script, start) => worked,
        signal = interrupted() => signal,
    };
    line("ending all parts ...");
    let ended = children.end().await;
    worked.and(ended)?;
    line("no child is left");
    Ok(())
}

async fn work(
    folder: Folder,
    addresses: Addresses,
    children: &mut Children,
    script: bool,
    start: Instant,
) -> Outcome {
    let (client, onboarded) = begin(&folder, &addresses, children).await?;
    let lines = lines::lines(&folder, &addresses);
    lines::print(&lines, &folder, &addresses, &onboarded, start.elapsed());
    if script {
        return script::run(&lines, &folder, &addresses, &client).await;
    }
    // Lives until a signal ends it or a part fails.
    Err(children.failed().await)
}

/// Starts all parts, then onboards the tenants.
async fn begin(
    folder: &Folder,
    addresses: &Addresses,
    children: &mut Children,
) -> Outcome<(Client, Onboarded)> {
    children.start(Part::dns(addresses))?;
    children.start(Part::origin(addresses))?;
    children.healthy("dns", addresses.dns_management, "/healthz").await?;
    children.start(Part::ca(addresses, folder))?;
    children.healthy("ca", addresses.ca_management, "/healthz").await?;
    crate::records::post(addresses.dns_management, "/forward", configuration::forward(addresses))
        .await
        .map_err(|text| Failure::failed(format!("DNS stub: {text}")))?;

    configuration::write_control_plane(folder, addresses)?;
    children.start(Part::control_plane(folder))?;
    let client = children.control_plane_ready(folder, addresses).await?;
    write_context(folder, addresses)?;
    for edge in 0..addresses.edges.len() {
        configuration::write_edge(folder, addresses, edge, &client).await?;
        children.start(Part::edge(folder, edge))?;
    }
    for edge in 0..addresses.edges.len() {
        children.healthy(&Part::edge_name(edge), addresses.edge_metrics(edge), "/readyz").await?;
    }
    let onboarded = tokio::select! {
        onboarded = onboarding::onboard(&client, addresses) => onboarded?,
        failure = children.failed() => return Err(failure),
    };
    Ok((client, onboarded))
}

/// Makes `portico --context DIR ...` work.
fn write_context(folder: &Folder, addresses: &Addresses) -> Outcome {
    let context = Context {
        api: format!("http://{}", addresses.api),
        token_file: PathBuf::from(folder::TOKEN),
        roots: Some(PathBuf::from(folder::ROOT)),
        edges_https: (0..addresses.edges.len()).map(|edge| addresses.edge_https(edge)).collect(),
        edges_http: (0..addresses.edges.len()).map(|edge| addresses.edge_http(edge)).collect(),
        dns_stub: Some(addresses.dns_management),
    };
    let text = toml::to_string(&context).map_err(|error| Failure::failed(error.to_string()))?;
    folder.write(crate::settings::CONTEXT_FILE, &text)
}

/// Ctrl-C, or a polite request to end: both are the normal end.
async fn interrupted() -> Outcome {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    line("");
    Ok(())
}

/// The quickstart's command line as it was given, with these flags added or put in the place of what was given: all else stays
/// as the user wants it.
fn again(changed: &[(&str, String)]) -> String {
    changed_line(std::env::args().skip_while(|word| word != "quickstart").skip(1), changed)
}

fn changed_line(given: impl IntoIterator<Item = String>, changed: &[(&str, String)]) -> String {
    let mut words = given.into_iter();
    let mut line = "quickstart".to_owned();
    while let Some(word) = words.next() {
        let (name, value) = word.split_once('=').map_or((&*word, None), |(name, value)| (name, Some(value)));
        if changed.iter().all(|(flag, _)| *flag != name) {
            line = format!("{line} {}", shell_word(&word));
        } else if value.is_none() {
            words.next();
        }
    }
    for (flag, value) in changed {
        line = format!("{line} {flag} {value}");
    }
    line
}

/// `path` as a word of a shell command, relative to the working folder where that is shorter.
fn shell_path(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    shell_word(&seen_from(path, here.as_deref()).display().to_string())
}

/// The same for a program that is to be called.
fn shell_program(path: &Path) -> String {
    let here = std::env::current_dir().ok();
    shell_word(&program_seen_from(path, here.as_deref()).display().to_string())
}

fn seen_from<'a>(path: &'a Path, here: Option<&Path>) -> &'a Path {
    here.and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
}

/// A shell looks for a bare word in its search path, and not in the working folder.
fn program_seen_from(path: &Path, here: Option<&Path>) -> PathBuf {
    let path = seen_from(path, here);
    let is_bare = path.is_relative() && path.components().count() == 1;
    if is_bare { Path::new(".").join(path) } else { path.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{changed_line, program_seen_from, seen_from};

    #[test]
    fn a_program_in_the_working_folder_is_called_by_its_path() {
        let here = Some(Path::new("/home/eve"));
        for (path, called) in [
            ("/home/eve/portico", "./portico"),
            ("/home/eve/target/release/portico", "target/release/portico"),
            ("/usr/bin/portico", "/usr/bin/portico"),
        ] {
            assert_eq!(program_seen_from(Path::new(path), here).to_str(), Some(called));
        }
        assert_eq!(seen_from(Path::new("/home/eve/qs"), here).to_str(), Some("qs"), "no program");
    }

    #[test]
    fn a_printed_next_line_keeps_what_the_user_gave() {
        let given =
            "--dir my-trial --edges=127.0.0.31 --script --api-port 7070".split(' ').map(str::to_owned);
        let line =
            changed_line(given, &[("--api-port", "7170".to_owned()), ("--ca-port", "14100".to_owned())]);
        assert_eq!(
            line,
            "quickstart --dir my-trial --edges=127.0.0.31 --script --api-port 7170 --ca-port 14100"
        );
        let given = ["--dir=q x".to_owned(), "--script".to_owned()];
        assert_eq!(
            changed_line(given, &[("--dir", "ANOTHER".to_owned())]),
            "quickstart --script --dir ANOTHER"
        );
    }
}
