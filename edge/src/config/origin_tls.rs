//! Files that a route names for its https origins: whom they are trusted by, and the client certificate that they are shown.

use std::{ops::Range, path::PathBuf, sync::Arc};

use portico_cert_store::{PrivateKey, pem_certificates};
use toml::Spanned;

use super::{ConfigError, Source};
use crate::{live::OriginIdentity, standalone};

/// With the place where the file says so.
type Identity = (Range<usize>, Arc<OriginIdentity>);

/// The client certificate that a route's origins are shown, with the place where the file says so. The key is in the same file or
/// in `client_key`.
pub(super) fn identity(
    source: Source<'_>,
    certificate: Option<&Spanned<PathBuf>>,
    key_file: Option<&Spanned<PathBuf>>,
) -> Result<Option<Identity>, ConfigError> {
    let certificate = match (certificate, key_file) {
        (None, None) => return Ok(None),
        (Some(certificate), _) => certificate,
        (None, Some(key)) => {
            let problem = "a key of no certificate: add client_certificate = \"edge.pem\"";
            return Err(source.error(Some(key.span()), problem.into()));
        }
    };
    let read = |name: &str, file: &Spanned<PathBuf>| {
        let path = source.resolve(file.get_ref());
        let wrong = |problem: String| {
            source.error(Some(file.span()), format!("{name} {}: {problem}", path.display()))
        };
        standalone::read(&path).map_err(wrong)
    };
    let pem = read("client_certificate", certificate)?;
    let key_pem = key_file.map(|file| read("client_key", file)).transpose()?;
    let key_span = key_file.map_or_else(|| certificate.span(), Spanned::span);
    let key = PrivateKey::from_pem(key_pem.as_ref().unwrap_or(&pem)).map_err(|error| {
        let hint = if key_file.is_some() { "" } else { "; or name its file: client_key = \"edge.key\"" };
        source.error(Some(key_span), format!("the client certificate's key: {error}{hint}"))
    })?;
    let wrong =
        |problem: String| source.error(Some(certificate.span()), format!("client_certificate: {problem}"));
    let chain = pem_certificates(&pem).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| wrong(format!("is not PEM: {error}")))?;
    let identity = OriginIdentity::new(chain, &key).map_err(wrong)?;
    Ok(Some((certificate.span(), Arc::new(identity))))
}

pub(super) fn authorities(
    source: Source<'_>,
    file: &Spanned<PathBuf>,
) -> Result<Vec<bytes::Bytes>, ConfigError> {
    let path = source.resolve(file.get_ref());
    let wrong =
        |problem: String| source.error(Some(file.span()), format!("ca_file {}: {problem}", path.display()));
    let pem = standalone::read(&path).map_err(wrong)?;
    let found: Result<Vec<_>, _> = pem_certificates(&pem).collect();
    let found = found.map_err(|error| wrong(format!("is not PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong("holds no certificate".to_owned()));
    }
    Ok(found.into_iter().map(|certificate| certificate.to_vec().into()).collect())
}

#[cfg(test)]
mod tests {
    use super::super::Config;
    use crate::limits;

    #[test]
    fn each_wrong_client_certificate_is_pointed_at() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let pair = || {
            let key = rcgen::KeyPair::generate().expect("a key");
            let params = rcgen::CertificateParams::new(Vec::<String>::new()).expect("no names");
            (params.self_signed(&key).expect("a certificate").pem(), key.serialize_pem())
        };
        let ((certificate, key), (_, other)) = (pair(), pair());
        let large = " ".repeat(usize::try_from(limits::CERTIFICATE_FILE_BYTES_MAX).expect("it fits") + 1);
        let both = certificate.clone() + &key;
        let files =
            [("a.crt", &certificate), ("a.key", &key), ("b.key", &other), ("both.pem", &both), ("l", &large)];
        for (name, text) in files {
            std::fs::write(path(name), text).expect("a file");
        }
        let parse = |scheme: &str, lines: &str| {
            let text = format!(
                "[[listen]]\naddress = \"127.0.0.1:0\"\nkind = \"https\"\n[[route]]\nhost = \"a.example\"\n\
                 proxy = \"{scheme}://b.example\"\n{lines}"
            );
            Config::parse(&path("edge.toml"), &text).map(|_| ()).map_err(|error| error.to_string())
        };
        for (scheme, lines, place, hint) in [
            ("https", "client_key = \"a.key\"\n", "7:14", "add client_certificate"),
            ("https", "client_certificate = \"none\"\n", "7:22", "No such file"),
            ("https", "client_certificate = \"l\"\n", "7:22", "at most 262144"),
            ("https", "client_certificate = \"a.crt\"\n", "7:22", "or name its file: client_key"),
            ("https", "client_certificate = \"a.key\"\n", "7:22", "holds no certificate"),
            ("https", "client_certificate = \"a.crt\"\nclient_key = \"none\"\n", "8:14", "No such file"),
            (
                "https",
                "client_certificate = \"a.crt\"\nclient_key = \"a.crt\"\n",
                "8:14",
                "no private key found",
            ),
            (
                "https",
                "client_certificate = \"a.crt\"\nclient_key = \"b.key\"\n",
                "7:22",
                "not that of the certificate",
            ),
            ("http", "client_certificate = \"both.pem\"\n", "7:22", "begin it with https://"),
        ] {
            let error = parse(scheme, lines).expect_err("the text is wrong");
            assert!(error.contains(&format!("edge.toml:{place}: ")), "{lines:?} gave {error:?}");
            assert!(error.contains(hint), "{lines:?} gave {error:?}");
            assert!(!error.contains("PRIVATE"), "{error:?}");
        }
        assert_eq!(parse("https", "client_certificate = \"both.pem\"\n"), Ok(()));
        assert_eq!(parse("https", "client_certificate = \"a.crt\"\nclient_key = \"a.key\"\n"), Ok(()));
    }
}
