//! One order at the CA: its steps, each of which may be repeated after a crash or a lost answer.

use std::collections::HashMap;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use instant_acme::{ChallengeType, Identifier, NewOrder};

use super::account::{Account, NonceTries};
use super::error::{AcmeError, AcmeErrorKind};
use super::http::observe;
use super::renewal_info::CertificateId;

/// The most authorizations that one order may have: the most names of any known profile.
const AUTHORIZATIONS_MAX: usize = 100;

/// An order as the CA holds it.
pub struct CaOrder {
    order: instant_acme::Order,
    thumbprint: String,
    retry_after: Option<std::time::Duration>,
    /// Of each name whose authorization was read: until when it stands, as the CA says.
    expires: HashMap<String, i64>,
}

impl std::fmt::Debug for CaOrder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CaOrder").field(&self.order.url()).finish()
    }
}

/// What an order is to be.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    pub names: &'a [String],
    /// The certificate that it replaces (RFC 9773 section 5).
    pub replaces: Option<&'a CertificateId>,
    /// One of the CA's profiles; `None`: its default.
    pub profile: Option<&'a str>,
}

/// RFC 8555 section 7.1.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaOrderStatus {
    Pending,
    Ready,
    Processing,
    Valid,
    Invalid,
}

/// One name of an order and what may be shown for it.
#[derive(Clone, Debug)]
pub struct CaAuthorization {
    /// As ordered: `*.` and the base for a wildcard.
    pub name: String,
    pub status: AuthorizationStatus,
    pub challenges: Vec<CaChallenge>,
    /// Until when the CA takes it, as its body says; Unix milliseconds. `None`: it does not say.
    pub expires_ms: Option<i64>,
    /// What the CA says of a failed validation.
    pub error: Option<AcmeError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthorizationStatus {
    Pending,
    Valid,
    /// Invalid, revoked, expired or deactivated: of no more use.
    Failed,
}

/// One way to show control of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaChallenge {
    pub method: ChallengeMethod,
    pub token: String,
    /// What HTTP-01 answers with.
    pub key_authorization: String,
    /// What TLS-ALPN-01 shows.
    pub digest: [u8; 32],
    /// What the TXT record of DNS-01 holds.
    pub dns_value: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum ChallengeMethod {
    #[serde(rename = "http-01")]
    Http01,
    #[serde(rename = "tls-alpn-01")]
    TlsAlpn01,
    #[serde(rename = "dns-01")]
    Dns01,
}

impl ChallengeMethod {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http01 => "http-01",
            Self::TlsAlpn01 => "tls-alpn-01",
            Self::Dns01 => "dns-01",
        }
    }

    fn of(kind: &ChallengeType) -> Option<Self> {
        match kind {
            ChallengeType::Http01 => Some(Self::Http01),
            ChallengeType::TlsAlpn01 => Some(Self::TlsAlpn01),
            ChallengeType::Dns01 => Some(Self::Dns01),
            ChallengeType::DeviceAttest01 | ChallengeType::Unknown(_) | _ => None,
        }
    }

    fn kind(self) -> ChallengeType {
        match self {
            Self::Http01 => ChallengeType::Http01,
            Self::TlsAlpn01 => ChallengeType::TlsAlpn01,
            Self::Dns01 => ChallengeType::Dns01,
        }
    }
}

impl CaOrder {
    /// Asks the CA for an order for exactly these names. The caller has made its intent durable, and asks for a replacement
    /// only where the CA's directory has renewal information.
    ///
    /// # Errors
    /// Any; with `location` set, the order exists there.
    pub async fn create(account: &Account, wanted: &Wanted<'_>) -> Result<Self, AcmeError> {
        let identifiers: Vec<_> = wanted.names.iter().map(|name| Identifier::Dns(name.clone())).collect();
        let mut order = NewOrder::new(&identifiers);
        if let Some(replaces) = wanted.replaces {
            order = order.replaces(replaces.identifier());
        }
        if let Some(profile) = wanted.profile {
            order = order.profile(profile);
        }
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(account.account.new_order(&order)).await;
            match result {
                Ok(order) => return Self::bounded(order, account),
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        }
    }

    /// Takes up an order by its URL.
    ///
    /// # Errors
    /// Any; [`AcmeErrorKind::OrderGone`] when the CA no longer knows it.
    pub async fn resume(account: &Account, url: &str) -> Result<Self, AcmeError> {
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(account.account.order(url.to_owned())).await;
            match result {
                Ok(order) => return Self::bounded(order, account),
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        }
    }

    fn bounded(mut order: instant_acme::Order, account: &Account) -> Result<Self, AcmeError> {
        if order.state().authorizations.len() > AUTHORIZATIONS_MAX {
            return Err(AcmeError::plain(AcmeErrorKind::Garbage, "the order has too many authorizations"));
        }
        let thumbprint = account.thumbprint().to_owned();
        Ok(Self { order, thumbprint, retry_after: None, expires: HashMap::new() })
    }

    pub fn url(&self) -> &str {
        self.order.url()
    }

    /// As of the last answer.
    pub fn status(&mut self) -> CaOrderStatus {
        match self.order.state().status {
            instant_acme::OrderStatus::Pending => CaOrderStatus::Pending,
            instant_acme::OrderStatus::Ready => CaOrderStatus::Ready,
            instant_acme::OrderStatus::Processing => CaOrderStatus::Processing,
            instant_acme::OrderStatus::Valid => CaOrderStatus::Valid,
            instant_acme::OrderStatus::Invalid => CaOrderStatus::Invalid,
        }
    }

    /// When the CA wants the next look, from the last one.
    pub fn retry_after(&self) -> Option<std::time::Duration> {
        self.retry_after
    }

    /// The CA's words on an order that failed.
    pub fn error(&mut self) -> Option<AcmeError> {
        self.order.state().error.as_ref().map(AcmeError::order_invalid)
    }

    /// Asks for the order's state.
    ///
    /// # Errors
    /// Any of the CA's.
    pub async fn refresh(&mut self) -> Result<CaOrderStatus, AcmeError> {
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(self.order.refresh()).await;
            self.retry_after = observed.retry_after;
            match result.map(|_| ()) {
                Ok(()) => return Ok(self.status()),
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        }
    }

    /// The order's authorizations; `fresh`: asked anew even when known.
    ///
    /// # Errors
    /// Any of the CA's.
    pub async fn authorizations(&mut self, fresh: bool) -> Result<Vec<CaAuthorization>, AcmeError> {
        let mut tries = NonceTries::default();
        loop {
            match self.read_authorizations(fresh).await {
                Ok(read) => return Ok(read),
                // What was fetched is kept, so this goes on where it broke off.
                Err(error) => tries.again(error)?,
            }
        }
    }

    async fn read_authorizations(&mut self, fresh: bool) -> Result<Vec<CaAuthorization>, AcmeError> {
        let mut read = Vec::new();
        let mut handles = self.order.authorizations();
        while let (Some(next), observed) = observe(handles.next()).await {
            let mut expires_ms = observed.expires_ms;
            let mut handle = next.map_err(|error| AcmeError::new(&error, observed))?;
            if fresh {
                expires_ms = fetch_again(&mut handle).await?;
            }
            let mut shown = view(&handle, &self.thumbprint);
            // One that is known already is not asked for, and its answer says nothing.
            if let Some(at) = expires_ms {
                self.expires.insert(shown.name.clone(), at);
            }
            shown.expires_ms = self.expires.get(&shown.name).copied();
            read.push(shown);
        }
        Ok(read)
    }

    /// Tells the CA to look at each of these names' challenge; `chosen` pairs a name with a method. One that the CA
    /// has already tried is left alone.
    ///
    /// # Errors
    /// Any of the CA's; a validation that failed at once is no error here but the order's state.
    pub async fn set_ready(&mut self, chosen: &[(String, ChallengeMethod)]) -> Result<(), AcmeError> {
        let mut handles = self.order.authorizations();
        while let (Some(next), observed) = observe(handles.next()).await {
            let mut handle = next.map_err(|e| AcmeError::new(&e, observed))?;
            let name = handle.identifier().to_string().to_ascii_lowercase();
            let Some((_, method)) = chosen.iter().find(|(chosen, _)| *chosen == name) else { continue };
            let Some(mut challenge) = handle.challenge(method.kind()) else { continue };
            if challenge.status != instant_acme::ChallengeStatus::Pending {
                continue;
            }
            let mut tries = NonceTries::default();
            loop {
                let (result, observed) = observe(challenge.set_ready()).await;
                match result {
                    Ok(()) => break,
                    // An error inside of a good answer is the validation's outcome.
                    Err(instant_acme::Error::Api(_)) if matches!(observed.status, Some(200..=299)) => break,
                    Err(error) => tries.again(AcmeError::new(&error, observed))?,
                }
            }
        }
        Ok(())
    }

    /// Sends the certificate request. The order must be ready.
    ///
    /// # Errors
    /// Any of the CA's.
    pub async fn finalize(&mut self, csr: &[u8]) -> Result<(), AcmeError> {
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(self.order.finalize_csr(csr)).await;
            match result {
                Ok(()) => return Ok(()),
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        }
    }

    /// The chain as PEM, or `None` while the CA is still at it.
    ///
    /// # Errors
    /// Any of the CA's; the order's own failure is [`AcmeErrorKind::NamesRefused`].
    pub async fn certificate(&mut self) -> Result<Option<String>, AcmeError> {
        let mut tries = NonceTries::default();
        loop {
            let (result, observed) = observe(self.order.certificate()).await;
            match result {
                Ok(pem) => return Ok(pem),
                Err(error) => tries.again(AcmeError::new(&error, observed))?,
            }
        }
    }
}

/// Answers until when it stands, as the CA says.
async fn fetch_again(handle: &mut instant_acme::AuthorizationHandle<'_>) -> Result<Option<i64>, AcmeError> {
    let mut tries = NonceTries::default();
    loop {
        let (result, observed) = observe(handle.refresh()).await;
        match result.map(|_| ()) {
            Ok(()) => return Ok(observed.expires_ms),
            Err(error) => tries.again(AcmeError::new(&error, observed))?,
        }
    }
}

fn view(handle: &instant_acme::AuthorizationHandle<'_>, thumbprint: &str) -> CaAuthorization {
    let name = handle.identifier().to_string().to_ascii_lowercase();
    let status = match handle.status {
        instant_acme::AuthorizationStatus::Pending => AuthorizationStatus::Pending,
        instant_acme::AuthorizationStatus::Valid => AuthorizationStatus::Valid,
        instant_acme::AuthorizationStatus::Invalid
        | instant_acme::AuthorizationStatus::Revoked
        | instant_acme::AuthorizationStatus::Expired
        | instant_acme::AuthorizationStatus::Deactivated => AuthorizationStatus::Failed,
    };
    let error = handle.challenges.iter().find_map(|c| c.error.as_ref()).map(AcmeError::validation);
    let challenges = handle.challenges.iter().filter_map(|c| challenge(c, thumbprint)).collect();
    CaAuthorization { name, status, challenges, expires_ms: None, error }
}

/// RFC 8555 section 8.1 and 8.4, RFC 8737 section 3.
fn challenge(challenge: &instant_acme::Challenge, thumbprint: &str) -> Option<CaChallenge> {
    let method = ChallengeMethod::of(&challenge.r#type)?;
    let key_authorization = format!("{}.{thumbprint}", challenge.token);
    let digest: [u8; 32] =
        aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, key_authorization.as_bytes())
            .as_ref()
            .try_into()
            .ok()?;
    Some(CaChallenge {
        method,
        token: challenge.token.clone(),
        dns_value: BASE64_URL_SAFE_NO_PAD.encode(digest),
        digest,
        key_authorization,
    })
}
