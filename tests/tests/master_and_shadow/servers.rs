//! Debian's own nginx, Apache and Caddy as MASTER: a site of their own, and the lines that `portico shadow` prints.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use portico_tests::{Lab, Running};
use serde_json::Value;

/// What MASTER answers itself, whatever the path.
pub(crate) const OWN_PAGE: &str = "MASTER's own page";

#[derive(Clone, Copy, Debug)]
pub(crate) enum Server {
    Nginx,
    Apache,
    Caddy,
}

/// What `portico shadow` prints.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) http: String,
    /// Only for the whole site.
    pub(crate) https: Option<String>,
}

/// Where MASTER listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
}

impl Server {
    pub(crate) const ALL: [Self; 3] = [Self::Nginx, Self::Apache, Self::Caddy];

    /// The servers that are on this machine; the others are named in the output.
    pub(crate) fn installed() -> Vec<Self> {
        let (here, missing): (Vec<_>, Vec<_>) =
            Self::ALL.into_iter().partition(|server| Path::new(server.program()).exists());
        for server in missing {
            portico_skipping::skipped(&format!(
                "{server:?} is not installed (apt-get install {})",
                server.package()
            ));
        }
        here
    }

    fn program(self) -> &'static str {
        match self {
            Self::Nginx => "/usr/sbin/nginx",
            Self::Apache => "/usr/sbin/apache2",
            Self::Caddy => "/usr/bin/caddy",
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Nginx => "nginx-light",
            Self::Apache => "apache2-bin",
            Self::Caddy => "caddy",
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Apache => "apache",
            Self::Caddy => "caddy",
        }
    }

    /// The lines for `name`, with the laboratory's first edge as SHADOW.
    pub(crate) fn printed(self, lab: &Lab, name: &str, whole_site: bool) -> Result<Lines> {
        let edge = &lab.edges[0];
        let mut command = lab.portico();
        command
            .args(["-o", "json", "--roots"])
            .arg(&lab.issuing_root)
            .args(["shadow", name, "--print", self.word()])
            .args(["--edge-http", &edge.http.to_string(), "--edge-https", &edge.https.to_string()]);
        if whole_site {
            command.arg("--whole-site");
        }
        let output = command.output()?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines: Value = serde_json::from_slice(&output.stdout)?;
        let text = |key: &str| lines[key].as_str().map(str::to_owned);
        Ok(Lines { http: text("http").context("lines for http")?, https: text("https") })
    }

    /// Starts MASTER for `name` with these lines in it.
    pub(crate) fn start(self, lab: &Lab, name: &str, at: Addresses, lines: &Lines) -> Result<Running> {
        let folder = self.folder(lab, name)?;
        let config = match self {
            Self::Nginx => nginx(&folder, name, at, lines),
            Self::Apache => apache(&folder, name, at, lines),
            Self::Caddy => caddy(name, at, lines),
        };
        self.run(lab, &folder, &config)
    }

    /// nginx as most sites have it: port 80 leads to https, where the lines are.
    pub(crate) fn start_redirecting(
        self,
        lab: &Lab,
        name: &str,
        at: Addresses,
        lines: &str,
    ) -> Result<Running> {
        let folder = self.folder(lab, name)?;
        let (Addresses { http, https }, at) = (at, folder.display());
        let servers = format!(
            "server {{ listen {http}; server_name {name}; return 301 https://$host$request_uri; }}\n\
             server {{ listen {https} ssl; server_name {name}; ssl_certificate {at}/master.pem;\n\
             ssl_certificate_key {at}/master.key;\n{lines}\nlocation / {{ return 200 \"{OWN_PAGE}\\n\"; }} }}\n"
        );
        self.run(lab, &folder, &nginx_around(&folder, &servers))
    }

    /// A folder with a certificate that nobody trusts.
    fn folder(self, lab: &Lab, name: &str) -> Result<PathBuf> {
        let folder = lab.folder.path().join(self.word());
        fs::create_dir_all(folder.join("nothing"))?;
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec![name.to_owned()])?.self_signed(&key)?;
        fs::write(folder.join("master.pem"), certificate.pem())?;
        fs::write(folder.join("master.key"), key.serialize_pem())?;
        Ok(folder)
    }

    fn run(self, lab: &Lab, folder: &Path, config: &str) -> Result<Running> {
        let file = folder.join("server.conf");
        fs::write(&file, config)?;
        let mut command = Command::new(self.program());
        match self {
            Self::Nginx => command.arg("-c").arg(file).arg("-p").arg(folder),
            Self::Apache => command.arg("-f").arg(file).arg("-DFOREGROUND"),
            Self::Caddy => command
                .args(["run", "--adapter", "caddyfile", "--config"])
                .arg(file)
                .env("XDG_DATA_HOME", folder)
                .env("XDG_CONFIG_HOME", folder)
                .env("HOME", folder),
        };
        Ok(Running::start(self.word(), lab.folder.path(), &mut command))
    }
}

/// Whatever nginx needs around its servers.
fn nginx_around(folder: &Path, servers: &str) -> String {
    let at = folder.display();
    format!(
        "daemon off;\npid {at}/pid;\nerror_log {at}/error.log;\nworker_processes 1;\nevents {{ worker_connections 256; }}\n\
         http {{\naccess_log {at}/access.log;\nclient_body_temp_path {at}/b;\nproxy_temp_path {at}/p;\n\
         fastcgi_temp_path {at}/f;\nuwsgi_temp_path {at}/u;\nscgi_temp_path {at}/s;\n{servers}}}\n"
    )
}

fn nginx(folder: &Path, name: &str, at: Addresses, lines: &Lines) -> String {
    let own = format!("location / {{ return 200 \"{OWN_PAGE}\\n\"; }}");
    let plain_rest = if lines.https.is_some() { "" } else { &own };
    let (Addresses { http, https }, folder_shown) = (at, folder.display());
    let servers = format!(
        "server {{ listen {http}; server_name {name};\n{}\n{plain_rest}\n}}\n\
         server {{ listen {https} ssl; server_name {name}; ssl_certificate {folder_shown}/master.pem;\n\
         ssl_certificate_key {folder_shown}/master.key;\n{}\n}}\n",
        lines.http,
        lines.https.as_ref().unwrap_or(&own)
    );
    nginx_around(folder, &servers)
}

fn apache(folder: &Path, name: &str, at: Addresses, lines: &Lines) -> String {
    let modules = ["mpm_event", "authz_core", "proxy", "proxy_http", "ssl"];
    let modules = modules
        .map(|name| format!("LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n"))
        .concat();
    let (Addresses { http, https }, at) = (at, folder.display());
    // There is no file to serve, so that every path is answered with the page for what is missing.
    let own = format!("ErrorDocument 404 \"{OWN_PAGE}\"\nErrorDocument 403 \"{OWN_PAGE}\"");
    format!(
        "ServerRoot {at}\nPidFile {at}/pid\nErrorLog {at}/error.log\nMutex file:{at}\nServerName {name}\n\
         User nobody\nGroup nogroup\n{modules}Listen {http}\nListen {https}\nDocumentRoot {at}/nothing\n{own}\n\
         <VirtualHost {http}>\nServerName {name}\n{}\n</VirtualHost>\n\
         <VirtualHost {https}>\nServerName {name}\nSSLEngine On\nSSLCertificateFile {at}/master.pem\n\
         SSLCertificateKeyFile {at}/master.key\n{}\n</VirtualHost>\n",
        lines.http,
        lines.https.as_deref().unwrap_or_default()
    )
}

fn caddy(name: &str, at: Addresses, lines: &Lines) -> String {
    let Addresses { http, https } = at;
    // Its own CA stands in for the certificate that it has today.
    let head = format!(
        "{{\n    admin off\n    local_certs\n    skip_install_trust\n    default_bind {}\n    http_port {}\n    https_port {}\n}}\n",
        http.ip(),
        http.port(),
        https.port()
    );
    let own = format!("https://{name} {{\n    respond \"{OWN_PAGE}\"\n}}\n");
    format!("{head}{}\n{}", lines.http, lines.https.as_ref().unwrap_or(&own))
}
