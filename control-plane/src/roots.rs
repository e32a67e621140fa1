//! Trust anchors for connections to others.

use std::path::Path;

use anyhow::Context as _;
use portico_cert_store::pem_certificates;
use rustls::RootCertStore;

/// The roots of `file`, or the system's; with `and_system` both.
///
/// # Errors
/// A file that cannot be read or is no PEM, or no root at all.
pub(crate) fn roots(file: Option<&Path>, and_system: bool) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    if file.is_none() || and_system {
        // Some of a system's roots may not parse; that is no reason to trust none.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if let Some(file) = file {
        let of_system = roots.len();
        let pem = std::fs::read(file).with_context(|| file.display().to_string())?;
        for certificate in pem_certificates(&pem) {
            let certificate = certificate.with_context(|| file.display().to_string())?;
            roots.add(certificate).with_context(|| file.display().to_string())?;
        }
        anyhow::ensure!(roots.len() > of_system, "{} holds no certificate in PEM", file.display());
    }
    anyhow::ensure!(
        !roots.is_empty(),
        "no trust anchors: install the system's CA certificates or name a file"
    );
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_certificate_is_refused_beside_the_systems_roots_too() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("roots.pem");
        std::fs::write(&file, "hidden").unwrap();
        for and_system in [false, true] {
            let error = format!("{:#}", roots(Some(&file), and_system).unwrap_err());
            assert!(error.contains("roots.pem holds no certificate") && !error.contains("hidden"), "{error}");
        }
    }
}
