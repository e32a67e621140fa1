//! Dynamic updates (RFC 2136) over TCP, signed with a shared key (TSIG, RFC 8945).

use std::net::SocketAddr;

use anyhow::{Context as _, bail, ensure};
use base64::prelude::{BASE64_STANDARD, Engine as _};
use hickory_proto::op::{Message, ResponseCode, update_message};
use hickory_proto::rr::rdata::TXT;
use hickory_proto::rr::rdata::tsig::{TsigAlgorithm, TsigError};
use hickory_proto::rr::{Name, RData, Record, RecordSet, TSigner};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Action;
use crate::clock;
use crate::config::DnsUpdateConfig;

/// Of what is shown for a minute or two. Seconds.
const TTL: u32 = 60;
/// By how much the server's clock may differ (RFC 8945 section 10). Seconds.
const FUDGE: u16 = 300;

pub(super) struct Update {
    zone: Name,
    server: SocketAddr,
    key: TSigner,
}

impl std::fmt::Debug for Update {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Update")
            .field("zone", &self.zone)
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Update {
    pub(super) fn new(zone: &str, config: &DnsUpdateConfig) -> anyhow::Result<Self> {
        let file = &config.secret_file;
        let text = super::secret(file)?;
        let secret = BASE64_STANDARD.decode(text.as_bytes()).ok().filter(|secret| !secret.is_empty());
        // The decoder would tell a part of it.
        let secret = secret.with_context(|| {
            format!("{} must hold the TSIG secret in base64, and nothing else", file.display())
        })?;
        let algorithm = match config.algorithm.as_str() {
            "hmac-sha256" => TsigAlgorithm::HmacSha256,
            "hmac-sha384" => TsigAlgorithm::HmacSha384,
            "hmac-sha512" => TsigAlgorithm::HmacSha512,
            other => bail!("algorithm \"{other}\" is none of hmac-sha256, hmac-sha384, hmac-sha512"),
        };
        ensure!(!config.key.is_empty(), "key is empty; it must name the TSIG key");
        let name = Name::from_ascii(&config.key).with_context(|| format!("key = \"{}\"", config.key))?;
        let key = TSigner::new(secret, algorithm, name, FUDGE).context("the TSIG key")?;
        Ok(Self { zone: absolute(zone)?, server: config.server, key })
    }

    pub(super) async fn write(&self, action: Action, name: &str, value: &str) -> Result<(), String> {
        let told = self.tell(action, name, value).await;
        told.map_err(|error| format!("{}: {error:#}", self.place()))
    }

    pub(super) fn place(&self) -> String {
        format!("update at {}", self.server)
    }

    async fn tell(&self, action: Action, name: &str, value: &str) -> anyhow::Result<()> {
        let data = RData::TXT(TXT::new(vec![value.to_owned()]));
        let records = RecordSet::from(Record::from_rdata(absolute(name)?, TTL, data));
        let mut update = match action {
            Action::Add => update_message::append(records, self.zone.clone(), false, false),
            Action::Remove => update_message::delete_by_rdata(records, self.zone.clone(), false),
        };
        let now = u64::try_from(clock::utc().unix_timestamp())?;
        let mut verifier = update.finalize(&self.key, now)?.context("an update is signed")?;
        let answer = exchange(self.server, &update.to_vec()?).await?;
        // Whoever refuses because of the key cannot sign that.
        let message = Message::from_vec(&answer).context("no DNS message came back")?;
        if let Some(why) = refusal(&message, self.key.signer_name()) {
            bail!(why);
        }
        verifier.verify(&answer).context("an answer that the key has not signed")?;
        Ok(())
    }
}

/// Why the server has not done it, and what to look at.
fn refusal(answer: &Message, key: &Name) -> Option<String> {
    let of_key = answer.signature().and_then(|signature| signature.data.error);
    let why = match (answer.response_code, of_key) {
        (ResponseCode::NoError, None) => return None,
        (_, Some(TsigError::BadKey)) => {
            return Some(format!(
                "BADKEY: it knows no key {key} of this algorithm; look at key and algorithm"
            ));
        }
        (_, Some(TsigError::BadSig)) => {
            return Some(format!("BADSIG: its key {key} has another secret; look at secret_file"));
        }
        (_, Some(TsigError::BadTime)) => {
            return Some(format!("BADTIME: its clock and ours differ by more than {FUDGE} s"));
        }
        (_, Some(other)) => {
            return Some(format!("it refuses the signature: TSIG error {}", u16::from(other)));
        }
        (ResponseCode::NotAuth, None) => "NOTAUTH: it does not serve the zone; look at zone and server",
        (ResponseCode::NotZone, None) => "NOTZONE: it has the name in another zone; look at zone",
        (ResponseCode::Refused, None) => "REFUSED: it takes no update of this name with this key",
        (code, None) => return Some(code.to_string()),
    };
    Some(why.to_owned())
}

fn absolute(name: &str) -> anyhow::Result<Name> {
    let mut name = Name::from_ascii(name).with_context(|| format!("{name} is no DNS name"))?;
    name.set_fqdn(true);
    Ok(name)
}

/// One message there and one back, each with its length before it (RFC 1035 section 4.2.2).
async fn exchange(server: SocketAddr, message: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await.context("connect")?;
    let length = u16::try_from(message.len())?.to_be_bytes();
    stream.write_all(&[length.as_slice(), message].concat()).await.context("send")?;
    let mut answer = vec![0; usize::from(stream.read_u16().await.context("no answer")?)];
    stream.read_exact(&mut answer).await.context("half an answer")?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_secret_that_is_none_is_refused_and_not_told() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tsig");
        let new = |text: &str, mode: u32, key: &str, algorithm: &str| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let config = DnsUpdateConfig {
                server: "127.0.0.1:53".parse().unwrap(),
                key: key.to_owned(),
                algorithm: algorithm.to_owned(),
                secret_file: file.clone(),
            };
            Update::new("shop.test", &config).map_err(|error| format!("{error:#}"))
        };
        let good = new("c2VjcmV0IHdvcmRz\n", 0o600, "portico", "hmac-sha256").unwrap();
        assert!(
            !format!("{good:?}").contains("c2VjcmV0") && !format!("{good:?}").contains("secret"),
            "{good:?}"
        );
        for (text, mode, key, algorithm, why) in [
            ("", 0o600, "portico", "hmac-sha256", "is empty"),
            ("hidden words!", 0o600, "portico", "hmac-sha256", "must hold the TSIG secret in base64"),
            ("secret \"c2VjcmV0\";", 0o600, "portico", "hmac-sha256", "must hold the TSIG secret in base64"),
            ("c2VjcmV0", 0o640, "portico", "hmac-sha256", "has mode 0640; it must be 0600"),
            ("c2VjcmV0", 0o600, "", "hmac-sha256", "key is empty"),
            ("c2VjcmV0", 0o600, "portico", "hmac-md5", "none of hmac-sha256"),
        ] {
            let error = new(text, mode, key, algorithm).unwrap_err();
            assert!(error.contains(why) && !error.contains("hidden") && !error.contains("c2Vj"), "{error}");
        }
    }
}
