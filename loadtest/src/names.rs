//! Which names a run asks for.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use portico_cert_store::DomainName;

/// At most this many names are kept from a file.
const NAMES_MAX: usize = 2_000_000;

/// `--name` any number of times, or `--names FILE` with one a line.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct NamesArgs {
    /// A name to ask for; may be given several times.
    #[arg(long = "name", value_name = "NAME")]
    names: Vec<String>,
    /// A file with one name a line.
    #[arg(long = "names", value_name = "FILE")]
    file: Option<PathBuf>,
}

impl NamesArgs {
    /// Names that are known already.
    pub(crate) fn of(names: &[DomainName]) -> Self {
        Self { names: names.iter().map(ToString::to_string).collect(), file: None }
    }

    /// The names, parsed; an error names the line.
    pub(crate) fn read(&self) -> Result<Vec<DomainName>> {
        let mut names = Vec::new();
        for name in &self.names {
            names.push(DomainName::parse(name).with_context(|| format!("--name {name}"))?);
        }
        if let Some(file) = &self.file {
            let text = std::fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
            for (at, line) in text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty()) {
                let name = DomainName::parse(line.trim())
                    .with_context(|| format!("{}:{}: {line}", file.display(), at + 1))?;
                names.push(name);
            }
        }
        if names.is_empty() {
            bail!("no names to ask for: give --name NAME or --names FILE");
        }
        if names.len() > NAMES_MAX {
            bail!("{} names, at most {NAMES_MAX}", names.len());
        }
        Ok(names)
    }
}
