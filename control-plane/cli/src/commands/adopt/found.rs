//! What the folder of another program holds, in one form for all programs; and reading it within bounds.
//!
//! Nothing in a folder is trusted: it may be half written, may be a copy with its links cut, may hold files of any size. What cannot
//! be taken is told in words and passed over; only a folder that is not the program's at all ends the command.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

use portico_api::v1::{DomainSpec, Route, SecretPem};
use portico_cert_store::{
    CertificateFacts, NamePattern, UPLOADED_CHAIN_BYTES_MAX, UPLOADED_KEY_BYTES_MAX, UnixTime, Upload,
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::failure::{Failure, Outcome};

/// Certificates in one run: 20,000 take some 120 MB here, and some minutes to send.
pub(super) const CERTIFICATES_MAX: usize = 20_000;
/// The largest configuration file that is read.
pub(super) const CONFIG_BYTES_MAX: usize = 4 << 20;
/// Entries of one folder.
const ENTRIES_MAX: usize = 100_000;

/// All that was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) certificates: Vec<FoundCertificate>,
    /// What the program does with requests for a name, as far as it says.
    pub(super) sites: BTreeMap<NamePattern, Site>,
    pub(super) skipped: Vec<Skipped>,
}

/// A certificate with its key, which fit each other and are valid now.
#[derive(Debug)]
pub(super) struct FoundCertificate {
    /// The file of the chain.
    pub(super) from: PathBuf,
    pub(super) chain_pem: String,
    pub(super) key_pem: SecretPem,
    pub(super) facts: CertificateFacts,
    /// The CA that issued it, as the program calls it.
    pub(super) ca: Option<Ca>,
    pub(super) account: Option<AccountFile>,
}

/// How a program says which CA it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Ca {
    /// URL of its directory.
    Directory(String),
    /// Host and path of the directory, joined by `-`: a folder's name in Caddy's storage.
    CaddyKey(String),
}

/// The key of an account at a CA, in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct AccountFile {
    pub(super) file: PathBuf,
    pub(super) form: KeyForm,
    /// What the program has noted of it: its URL at the CA.
    pub(super) url: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum KeyForm {
    Pem,
    /// JSON Web Key (RFC 7517).
    Jwk,
}

/// What a program does with requests for a name.
#[derive(Clone, Debug)]
pub(super) struct Site {
    /// Where it says so.
    pub(super) from: String,
    /// Its settings; the hostname is not looked at. `Err`: why they cannot be expressed here.
    pub(super) spec: Result<DomainSpec, String>,
    /// What of it is left out, although the rest is taken.
    pub(super) remarks: Vec<String>,
}

impl Site {
    pub(super) fn of_routes(from: String, routes: Vec<Route>) -> Self {
        let spec = DomainSpec { routes, ..DomainSpec::new(String::new()) };
        Self { from, spec: Ok(spec), remarks: Vec::new() }
    }

    pub(super) fn not_understood(from: String, why: impl Into<String>) -> Self {
        Self { from, spec: Err(why.into()), remarks: Vec::new() }
    }
}

/// What was found and is not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Skipped {
    pub(super) what: String,
    pub(super) why: String,
}

impl Found {
    pub(super) fn skip(&mut self, what: impl std::fmt::Display, why: impl Into<String>) {
        self.skipped.push(Skipped { what: what.to_string(), why: why.into() });
    }

    /// Takes a certificate if it and its key can be served; else says why not.
    ///
    /// # Errors
    /// There are more than [`CERTIFICATES_MAX`].
    pub(super) fn add(&mut self, files: &Files, wanted: Wanted<'_>, now: UnixTime) -> Outcome {
        if self.certificates.len() >= CERTIFICATES_MAX {
            let text = format!("more than {CERTIFICATES_MAX} certificates in one folder");
            return Err(
                Failure::failed(text).next_text("copy parts of it into folders of their own, one run each")
            );
        }
        match wanted.read(files, now) {
            Ok(certificate) => self.certificates.push(certificate),
            Err(why) => self.skip(wanted.what, why),
        }
        Ok(())
    }
}

/// A certificate that a program says it has.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// What the program calls it.
    pub(super) what: &'a str,
    pub(super) chain: PathBuf,
    pub(super) key: PathBuf,
    pub(super) ca: Option<Ca>,
    pub(super) account: Option<AccountFile>,
}

impl Wanted<'_> {
    fn read(&self, files: &Files, now: UnixTime) -> Result<FoundCertificate, String> {
        let chain_pem = files.read(&self.chain, UPLOADED_CHAIN_BYTES_MAX)?;
        let key_pem = SecretPem::new(files.read(&self.key, UPLOADED_KEY_BYTES_MAX)?);
        let upload = Upload::read(&chain_pem, key_pem.reveal(), None, now).map_err(|faults| {
            let text = |fault: &portico_cert_store::UploadFault| {
                let file = match fault.part {
                    portico_cert_store::UploadPart::Chain => &self.chain,
                    portico_cert_store::UploadPart::Key => &self.key,
                };
                format!("{} {fault}", file.display())
            };
            faults.iter().map(text).collect::<Vec<_>>().join("; ")
        })?;
        let facts = upload.chain.facts().clone();
        if facts.names.is_empty() {
            return Err(format!("{} holds no name that can be served", self.chain.display()));
        }
        Ok(FoundCertificate {
            from: self.chain.clone(),
            chain_pem,
            key_pem,
            facts,
            ca: self.ca.clone(),
            account: self.account.clone(),
        })
    }
}

/// Reads files, as the other machine named them.
#[derive(Debug, Default)]
pub(super) struct Files {
    /// Where the other machine's `/` is, when the folder is a copy.
    root: Option<PathBuf>,
    /// With a root: where all that is read has to lie. Canonical.
    within: Vec<PathBuf>,
}

impl Files {
    /// `named`: what the operator has named besides the root, which may lie elsewhere.
    ///
    /// # Errors
    /// One of them is not there.
    pub(super) fn new<'a>(
        root: Option<&'a Path>,
        named: impl IntoIterator<Item = &'a Path>,
    ) -> Outcome<Self> {
        let Some(root) = root else { return Ok(Self::default()) };
        let real = |path: &Path| path.canonicalize().map_err(|error| Failure::file(path, error));
        let within = std::iter::once(root).chain(named).map(real).collect::<Outcome<Vec<_>>>()?;
        Ok(Self { root: Some(root.to_owned()), within })
    }

    /// An absolute path of the other machine, here.
    pub(super) fn here(&self, path: &Path) -> PathBuf {
        match (&self.root, path.strip_prefix("/")) {
            (Some(root), Ok(rest)) => root.join(rest),
            _ => path.to_owned(),
        }
    }

    /// The text of a file. Links are followed, but not out of a copy: the configuration that names the file is a customer's, and
    /// what is outside is the operator's own.
    ///
    /// # Errors
    /// In words, with the file's name.
    pub(super) fn read(&self, path: &Path, bytes_max: usize) -> Result<String, String> {
        let fault = |error: std::io::Error| match std::fs::read_link(path) {
            Ok(to) => format!("{} -> {}: {error}", path.display(), to.display()),
            Err(_) => format!("{}: {error}", path.display()),
        };
        let path = match &self.root {
            None => Cow::Borrowed(path),
            Some(root) => {
                let real = path.canonicalize().map_err(fault)?;
                if !self.within.iter().any(|folder| real.starts_with(folder)) {
                    let (path, real, root) = (path.display(), real.display(), root.display());
                    return Err(format!(
                        "{path} leads to {real}, out of --root {root}: copy it there if meant"
                    ));
                }
                Cow::Owned(real)
            }
        };
        // Before it is opened: a pipe would be waited for already then, and a device read for ever.
        if !std::fs::metadata(&path).map_err(fault)?.is_file() {
            return Err(format!("{} is no file", path.display()));
        }
        let file = std::fs::File::open(&path).map_err(fault)?;
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(bytes_max as u64 + 1).read_to_end(&mut bytes).map_err(fault)?;
        if bytes.len() > bytes_max {
            return Err(format!("{} has more than {bytes_max} bytes", path.display()));
        }
        let text = std::str::from_utf8(&bytes).map_err(|_| format!("{} is no text", path.display()))?;
        Ok(text.to_owned())
    }
}

/// The names of what a folder holds, sorted; those that are no UTF-8 are left out.
///
/// # Errors
/// The folder cannot be read, or holds too much.
pub(super) fn entries(folder: &Path) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|error| Failure::file(folder, error))? {
        let entry = entry.map_err(|error| Failure::file(folder, error))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
        if names.len() > ENTRIES_MAX {
            return Err(Failure::file(folder, format!("holds more than {ENTRIES_MAX} entries")));
        }
    }
    names.sort();
    Ok(names)
}

/// A text out of a file as a relative path that stays below where it is joined.
pub(super) fn below(text: &str) -> Option<&Path> {
    let path = Path::new(text);
    let stays = path.components().all(|part| matches!(part, Component::Normal(_)));
    (stays && !text.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_out_of_a_file_does_not_lead_out_of_its_folder() {
        assert_eq!(below("ca.example/dir"), Some(Path::new("ca.example/dir")));
        for wrong in ["", "/etc", "../x", "a/../../x", ".."] {
            assert_eq!(below(wrong), None, "{wrong}");
        }
        let files = Files { root: Some("/mnt/old".into()), ..Files::default() };
        assert_eq!(files.here(Path::new("/etc/x.pem")), Path::new("/mnt/old/etc/x.pem"));
        assert_eq!(files.here(Path::new("x.pem")), Path::new("x.pem"));
    }

    #[test]
    fn a_copy_of_a_machine_does_not_lead_to_files_of_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("old");
        let etc = root.join("etc");
        std::fs::create_dir_all(&etc).unwrap();
        std::fs::write(folder.path().join("own"), "own").unwrap();
        std::fs::write(folder.path().join("named"), "named").unwrap();
        std::fs::write(etc.join("copied"), "copied").unwrap();
        std::os::unix::fs::symlink("../../own", etc.join("link")).unwrap();
        std::os::unix::fs::symlink("copied", etc.join("alias")).unwrap();
        let named = folder.path().join("named");
        let files = Files::new(Some(&root), [etc.as_path(), named.as_path()]).unwrap();
        for wrong in ["/../own", "/etc/../../own", "/etc/link"] {
            let told = files.read(&files.here(Path::new(wrong)), 10).unwrap_err();
            assert!(told.contains("own, out of --root"), "{told}");
        }
        for right in ["/etc/copied", "/etc/../etc/copied", "/etc/alias"] {
            assert_eq!(files.read(&files.here(Path::new(right)), 10).as_deref(), Ok("copied"), "{right}");
        }
        assert_eq!(files.read(&named, 10).as_deref(), Ok("named"));
        assert!(Files::new(Some(&root.join("gone")), [named.as_path()]).is_err());
    }

    #[test]
    fn what_is_too_large_no_file_or_no_text_is_told_by_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("large"), "x".repeat(11)).unwrap();
        std::fs::write(path("bytes"), [0xff]).unwrap();
        std::os::unix::fs::symlink("../archive/gone.pem", path("link")).unwrap();
        std::os::unix::fs::symlink("round", path("round")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(path("pipe")).status().unwrap().success());
        let files = Files::default();
        for (name, words) in [
            ("large", "more than 10 bytes"),
            ("bytes", "is no text"),
            (".", "is no file"),
            ("link", "-> ../archive/gone.pem: No such file"),
            ("round", "-> round: Too many levels"),
            ("pipe", "is no file"),
        ] {
            let told = files.read(&path(name), 10).unwrap_err();
            assert!(told.contains(words), "{told}");
        }
        assert_eq!(files.read(&path("large"), 11).unwrap().len(), 11);
    }
}
