//! nginx's configuration, such as /etc/nginx: which certificates it shows for which names, and what it does with requests.
//!
//! Certificates are taken for the names of the server blocks that show them. Where one lies in a folder of certbot's, that says
//! which CA and account renew it.

mod site;
mod syntax;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use portico_cert_store::{NamePattern, UnixTime};

use self::site::{Upstreams, redirects_to_https, site, upstream};
use self::syntax::{Directive, Loader, named};
use super::certbot::Lineage;
use super::found::{Files, Found, Site, Wanted};
use crate::failure::{Failure, Outcome};

/// # Errors
/// There is no configuration, or too much.
pub(super) fn read(folder: &Path, files: &Files, now: UnixTime) -> Outcome<Found> {
    let file = if folder.is_dir() { folder.join("nginx.conf") } else { folder.to_owned() };
    if !file.is_file() {
        let text = format!("{} is not there, so there is no configuration of nginx's", file.display());
        return Err(Failure::usage(text).next_text("give its folder or its first file, such as /etc/nginx"));
    }
    let prefix = file.parent().map(Path::to_owned).unwrap_or_default();
    let mut loader = Loader::new(files, prefix);
    let all = loader.load(&file)?;
    let mut found = Found { skipped: std::mem::take(&mut loader.skipped), ..Found::default() };
    let mut pairs: BTreeMap<(String, String), ()> = BTreeMap::new();
    let mut plain: HashMap<NamePattern, String> = HashMap::new();
    for http in named(&all, "http") {
        let upstreams: Upstreams = named(&http.block, "upstream")
            .filter_map(|directive| Some((directive.word()?.to_owned(), upstream(&directive.block))))
            .collect();
        let inherited = http.block.iter().find(|one| INHERITED.contains(&one.name.as_str()));
        let shut = inherited.map(|one| {
            format!(
                "{}: {} for all servers is not understood, and who may come in hangs on it",
                one.at, one.name
            )
        });
        for server in named(&http.block, "server") {
            let names = names(&mut found, server);
            if !is_tls(server) {
                if !redirects_to_https(&server.block) {
                    plain.extend(names.into_iter().map(|name| (name, server.at.clone())));
                }
                continue;
            }
            for pair in certificates(server, http) {
                pairs.insert(pair, ());
            }
            take(&mut found, server, names, &upstreams, shut.as_deref());
        }
    }
    for (chain, key) in pairs.into_keys() {
        add(&mut found, &loader, (&chain, &key), now)?;
    }
    for (name, at) in plain {
        match found.sites.get_mut(&name) {
            Some(site) => site.remarks.push(format!(
                "{at}: over plain http it is another site; here http leads to https (`portico domain set NAME \
                 --https-redirect false` changes that)"
            )),
            None => found.skip(name, format!("{at}: it is served over plain http only")),
        }
    }
    Ok(found)
}

/// What servers inherit and what keeps visitors out: a site must not be open here that was not.
const INHERITED: [&str; 9] = [
    "allow",
    "auth_basic",
    "auth_jwt",
    "auth_request",
    "deny",
    "satisfy",
    "ssl_client_certificate",
    "ssl_trusted_certificate",
    "ssl_verify_client",
];

/// The names of a server block that can be names of domains.
fn names(found: &mut Found, server: &Directive) -> Vec<NamePattern> {
    let mut names = Vec::new();
    for word in named(&server.block, "server_name").flat_map(|directive| &directive.words) {
        let word = word.trim();
        if matches!(word, "" | "_" | "localhost") {
            continue;
        }
        // `.a.test` stands for both.
        let both = word.strip_prefix('.').map(|base| vec![base.to_owned(), format!("*.{base}")]);
        for name in both.unwrap_or_else(|| vec![word.to_owned()]) {
            match NamePattern::parse(&name) {
                Ok(name) => names.push(name),
                Err(error) => found.skip(format!("server_name {word}"), format!("{}: {error}", server.at)),
            }
        }
    }
    names
}

fn is_tls(server: &Directive) -> bool {
    named(&server.block, "listen")
        .any(|listen| listen.words.iter().skip(1).any(|word| word == "ssl" || word == "quic"))
        || named(&server.block, "ssl").any(|ssl| ssl.word() == Some("on"))
}

/// The pairs of a block, or those that hold for all.
fn certificates(server: &Directive, http: &Directive) -> Vec<(String, String)> {
    let of = |block: &[Directive]| {
        let words =
            |name| named(block, name).filter_map(Directive::word).map(str::to_owned).collect::<Vec<_>>();
        words("ssl_certificate").into_iter().zip(words("ssl_certificate_key")).collect::<Vec<_>>()
    };
    let own = of(&server.block);
    if own.is_empty() { of(&http.block) } else { own }
}

/// `shut`: why no server can be read by itself.
fn take(
    found: &mut Found,
    server: &Directive,
    names: Vec<NamePattern>,
    upstreams: &Upstreams,
    shut: Option<&str>,
) {
    let (spec, remarks) = site(&server.block, upstreams);
    let spec = shut.map_or(spec, |why| Err(why.to_owned()));
    let is_tls_only = named(&server.block, "ssl").any(|ssl| ssl.word() == Some("on"));
    let is_plain_too = !is_tls_only
        && named(&server.block, "listen")
            .any(|listen| !listen.words.iter().any(|word| word == "ssl" || word == "quic"));
    let spec = spec.map(|mut spec| {
        // The same site over http.
        spec.https_redirect = !is_plain_too;
        spec
    });
    for name in names {
        let one = Site { from: server.at.clone(), spec: spec.clone(), remarks: remarks.clone() };
        // Of several blocks with a name nginx takes the first.
        found.sites.entry(name).or_insert(one);
    }
}

fn add(found: &mut Found, loader: &Loader<'_>, (chain, key): (&str, &str), now: UnixTime) -> Outcome {
    if chain.contains('$') || key.contains('$') || chain.starts_with("data:") || key.contains(':') {
        found.skip(chain, "it is chosen for each connection, or is no file");
        return Ok(());
    }
    let (chain_here, key_here) = (loader.here(chain), loader.here(key));
    // FOLDER/live/NAME/fullchain.pem
    let live = chain_here.parent().filter(|at| at.parent().is_some_and(|live| live.ends_with("live")));
    let certbot = live.and_then(|at| Some((at.parent()?.parent()?, at.file_name()?.to_str()?)));
    let certbot =
        certbot.filter(|(folder, name)| folder.join("renewal").join(format!("{name}.conf")).is_file());
    let (mut ca, mut account) = (None, None);
    if let Some((folder, name)) = certbot {
        let no_account = match Lineage::read(folder, name, loader.files) {
            Ok(lineage) => {
                (ca, account) = (lineage.ca, lineage.account);
                lineage.no_account
            }
            Err(why) => Some(why),
        };
        if let Some(why) = no_account {
            found.skip(format!("the account of {chain}"), why);
        }
    }
    let wanted = Wanted { what: chain, chain: chain_here, key: key_here, ca, account };
    found.add(loader.files, wanted, now)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_a_folder_of_certbots_says_nothing_of_a_certificate_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let live = folder.path().join("live/a.test");
        std::fs::create_dir_all(&live).unwrap();
        std::fs::create_dir(folder.path().join("renewal")).unwrap();
        std::fs::write(folder.path().join("renewal/a.test.conf"), [0xff]).unwrap();
        let files = Files::default();
        let loader = Loader::new(&files, folder.path().to_owned());
        let path = |name: &str| live.join(name).display().to_string();
        let pair = (path("fullchain.pem"), path("privkey.pem"));
        let mut found = Found::default();
        let now = UnixTime::since_unix_epoch(std::time::Duration::ZERO);
        add(&mut found, &loader, (&pair.0, &pair.1), now).unwrap();
        let told = &found.skipped[0];
        assert_eq!(told.what, format!("the account of {}", pair.0));
        assert!(told.why.contains("a.test.conf is no text"), "{told:?}");
    }
}
