//! certbot's folder, such as /etc/letsencrypt.
//!
//! `renewal/NAME.conf` says which CA and account renew `live/NAME/`, whose files are links into `archive/NAME/`; the key of the
//! account is `accounts/HOST/PATH/ACCOUNT/private_key.json`. What stands in the files of `renewal/` as absolute paths is not
//! followed: the folder may be a copy.

use std::collections::HashMap;
use std::path::Path;

use portico_cert_store::UnixTime;

use super::found::{AccountFile, CONFIG_BYTES_MAX, Ca, Files, Found, KeyForm, Wanted, below, entries};
use crate::failure::{Failure, Outcome};

/// # Errors
/// It is no folder of certbot's, or holds too much.
pub(super) fn read(folder: &Path, files: &Files, now: UnixTime) -> Outcome<Found> {
    let renewal = folder.join("renewal");
    if !renewal.is_dir() {
        let text = format!("{} has no renewal/, so it is no folder of certbot's", folder.display());
        return Err(Failure::usage(text)
            .next_text("give the folder that certbot calls --config-dir, such as /etc/letsencrypt"));
    }
    let mut found = Found::default();
    for entry in entries(&renewal)? {
        let Some(name) = entry.strip_suffix(".conf") else { continue };
        match Lineage::read(folder, name, files) {
            Err(why) => found.skip(name, why),
            Ok(lineage) => {
                if let Some(why) = lineage.no_account {
                    found.skip(format!("the account of {name}"), why);
                }
                let live = folder.join("live").join(name);
                let wanted = Wanted {
                    what: name,
                    chain: live.join("fullchain.pem"),
                    key: live.join("privkey.pem"),
                    ca: lineage.ca,
                    account: lineage.account,
                };
                found.add(files, wanted, now)?;
            }
        }
    }
    Ok(found)
}

/// What certbot knows of a certificate besides its files.
#[derive(Debug, Default)]
pub(super) struct Lineage {
    pub(super) ca: Option<Ca>,
    pub(super) account: Option<AccountFile>,
    /// Why there is no account.
    pub(super) no_account: Option<String>,
}

impl Lineage {
    /// # Errors
    /// In words.
    pub(super) fn read(folder: &Path, name: &str, files: &Files) -> Result<Self, String> {
        let file = folder.join("renewal").join(format!("{name}.conf"));
        let values = parameters(&files.read(&file, CONFIG_BYTES_MAX)?);
        let Some(server) = values.get("server") else {
            let none = Some(format!("{} names no server", file.display()));
            return Ok(Self { no_account: none, ..Self::default() });
        };
        let ca = Some(Ca::Directory(server.clone()));
        let at = server.strip_prefix("https://").and_then(below);
        let (Some(at), Some(account)) = (at, values.get("account").and_then(|account| below(account))) else {
            let none = Some(format!("{} names no account", file.display()));
            return Ok(Self { ca, no_account: none, account: None });
        };
        let of_account = folder.join("accounts").join(at).join(account);
        let key = of_account.join("private_key.json");
        if key.exists() {
            let noted = files.read(&of_account.join("regr.json"), CONFIG_BYTES_MAX).ok();
            let noted = noted.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
            let url = noted.and_then(|noted| noted["uri"].as_str().map(str::to_owned));
            let account = Some(AccountFile { file: key, form: KeyForm::Jwk, url });
            return Ok(Self { ca, account, no_account: None });
        }
        Ok(Self { ca, account: None, no_account: Some(format!("{} is not there", key.display())) })
    }
}

/// `key = value` of the section `[renewalparams]`.
fn parameters(text: &str) -> HashMap<String, String> {
    let mut values = HashMap::new();
    let mut is_here = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            // [[webroot_map]] and the like are sections within.
            is_here = line == "[renewalparams]";
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_here && !line.starts_with('#'))
        {
            values.insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameters_of_renewal_are_those_of_its_section() {
        let text = "version = 2.1.0\nserver = https://wrong\n# Options\n[renewalparams]\naccount = 0d87\n# account = 1\n\
                    server = https://ca.example/dir\nkey_type = ecdsa\n[[webroot_map]]\nserver = /srv\n";
        let values = parameters(text);
        assert_eq!(values["account"], "0d87");
        assert_eq!(values["server"], "https://ca.example/dir");
    }

    #[test]
    fn a_folder_of_another_kind_is_refused_with_the_right_one() {
        let folder = tempfile::tempdir().unwrap();
        let refused =
            read(folder.path(), &Files::default(), UnixTime::since_unix_epoch(std::time::Duration::ZERO));
        let refused = refused.unwrap_err();
        assert!(refused.text.contains("no renewal/"), "{}", refused.text);
        assert!(refused.next_line().unwrap().contains("/etc/letsencrypt"));
    }

    #[test]
    fn a_lineage_whose_account_is_gone_or_leads_elsewhere_has_none() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("renewal")).unwrap();
        for (server, account, words) in [
            ("https://ca.example/dir", "0d87", "private_key.json is not there"),
            ("https://ca.example/../../dir", "0d87", "names no account"),
            ("https://ca.example/dir", "../0d87", "names no account"),
        ] {
            let text = format!("[renewalparams]\naccount = {account}\nserver = {server}\n");
            std::fs::write(folder.path().join("renewal/a.test.conf"), text).unwrap();
            let lineage = Lineage::read(folder.path(), "a.test", &Files::default()).unwrap();
            assert!(lineage.no_account.unwrap().contains(words));
            assert_eq!((lineage.ca, lineage.account), (Some(Ca::Directory(server.to_owned())), None));
        }
    }
}
