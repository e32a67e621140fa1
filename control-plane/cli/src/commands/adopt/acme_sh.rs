//! The folder of acme.sh, such as ~/.acme.sh.
//!
//! A folder for each certificate, `NAME` or `NAME_ecc` by its kind of key, with `NAME.conf` (shell assignments), `NAME.key` and
//! `fullchain.cer`; the key of the account is `ca/HOST/PATH/account.key`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use portico_cert_store::UnixTime;

use super::found::{AccountFile, CONFIG_BYTES_MAX, Ca, Files, Found, KeyForm, Wanted, below, entries};
use crate::failure::{Failure, Outcome};

/// # Errors
/// It is no folder of acme.sh's, or holds too much.
pub(super) fn read(folder: &Path, files: &Files, now: UnixTime) -> Outcome<Found> {
    let mut found = Found::default();
    let mut is_one = folder.join("account.conf").is_file() || folder.join("ca").is_dir();
    for entry in entries(folder)? {
        let name = entry.strip_suffix("_ecc").unwrap_or(&entry);
        let of_name = folder.join(&entry);
        let conf = of_name.join(format!("{name}.conf"));
        if !conf.is_file() {
            continue;
        }
        is_one = true;
        let values = match files.read(&conf, CONFIG_BYTES_MAX) {
            Ok(text) => assignments(&text),
            Err(why) => {
                found.skip(&entry, why);
                continue;
            }
        };
        let directory = values.get("Le_API").filter(|url| url.starts_with("https://"));
        let account = directory.map(|directory| account(folder, directory, files));
        if let Some(Err(why)) = &account {
            found.skip(format!("the account of {entry}"), why.clone());
        }
        let wanted = Wanted {
            what: &entry,
            chain: of_name.join("fullchain.cer"),
            key: of_name.join(format!("{name}.key")),
            ca: directory.cloned().map(Ca::Directory),
            account: account.and_then(Result::ok),
        };
        found.add(files, wanted, now)?;
    }
    if is_one {
        return Ok(found);
    }
    let text =
        format!("{} has neither account.conf nor ca/, so it is no folder of acme.sh's", folder.display());
    Err(Failure::usage(text)
        .next_text("give the folder that acme.sh calls --config-home, such as ~/.acme.sh"))
}

/// acme.sh leaves the port out.
fn account(folder: &Path, directory: &str, files: &Files) -> Result<AccountFile, String> {
    let (host, path) = directory.trim_start_matches("https://").split_once('/').unwrap_or((directory, ""));
    let host = host.split(':').next().unwrap_or_default();
    let at = match (below(host), below(path)) {
        (Some(host), Some(path)) => host.join(path),
        (Some(host), None) if path.is_empty() => PathBuf::from(host),
        _ => return Err(format!("{directory} leads to no folder")),
    };
    let ca = folder.join("ca");
    let file = ca.join(at).join("account.key");
    // Releases before 3.0 had one for a host.
    let older = ca.join(host).join("account.key");
    match [&file, &older].into_iter().find(|file| file.is_file()) {
        Some(file) => {
            let noted = files.read(&file.with_file_name("ca.conf"), CONFIG_BYTES_MAX).unwrap_or_default();
            let url = assignments(&noted).remove("ACCOUNT_URL");
            Ok(AccountFile { file: file.clone(), form: KeyForm::Pem, url })
        }
        None => Err(format!("{} is not there", file.display())),
    }
}

/// `NAME='value'`, one a line. Nothing is expanded.
fn assignments(text: &str) -> HashMap<String, String> {
    let read = |line: &str| {
        let (name, value) = line.split_once('=')?;
        let value = value.trim();
        let value = value.strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).unwrap_or(value);
        Some((name.trim().to_owned(), value.to_owned()))
    };
    text.lines().filter_map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_read_and_never_run() {
        let values = assignments(
            "Le_Domain='a.test'\nLe_Alt='no'\nLe_API='https://ca.test/dir'\nLe_Keylength=ec-256\n\nX=$(id)\n",
        );
        assert_eq!(values["Le_Domain"], "a.test");
        assert_eq!(values["Le_Keylength"], "ec-256");
        assert_eq!(values["X"], "$(id)");
    }

    #[test]
    fn the_account_of_a_directory_is_found_without_its_port() {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("ca/ca.test/dir");
        std::fs::create_dir_all(&at).unwrap();
        std::fs::write(at.join("account.key"), "x").unwrap();
        std::fs::write(at.join("ca.conf"), "ACCOUNT_URL='https://ca.test:14000/acct/7'\n").unwrap();
        let of = |directory| account(folder.path(), directory, &Files::default());
        let found = of("https://ca.test:14000/dir").unwrap();
        assert_eq!(
            (found.file, found.url.as_deref()),
            (at.join("account.key"), Some("https://ca.test:14000/acct/7"))
        );
        assert!(of("https://ca.test/other").unwrap_err().contains("is not there"));
        assert!(of("https://../etc").unwrap_err().contains("leads to no folder"));
    }
}
