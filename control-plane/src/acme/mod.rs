//! Speaking ACME (RFC 8555) to a CA: the only place that names instant_acme.
//!
//! - [`http`]: the way to the CA: one bounded HTTP client per issuer, with pace, time limits and what each answer said
//!   about trying again.
//! - [`error`]: what went wrong, in the terms that the order machine decides by.
//! - [`account`]: the account key and its registration, which may be repeated without a second account.
//! - [`external_account`]: the same, at CAs that bind it to an account made elsewhere.
//! - [`key_change`]: another key for an account that another client has used with an RSA key.
//! - [`renewal_info`]: when the CA suggests to renew a certificate, and what it calls it.
//! - [`revocation`]: of certificates whose keys others may have.
//! - [`order`]: one order's steps at the CA, each of which may be repeated.
//!
//! Everything here can be called again after a crash and reaches the same end; when to call again is the order
//! machine's decision (`tasks`). Deliberately absent: storage, challenges' placement, back-off, rollover of our own keys,
//! orders on account keys other than P-256 (ES256 is all that the crate signs with).

pub mod account;
pub mod error;
pub mod external_account;
pub mod http;
mod jws;
pub mod key_change;
pub mod order;
pub mod renewal_info;
mod revocation;

pub use account::{Account, AccountKey};
pub use error::{AcmeError, AcmeErrorKind};
pub use external_account::ExternalAccount;
pub use http::{CaEndpoint, CaHttp, CaHttpError, Pace};
pub use key_change::RsaAccountKey;
pub use order::{AuthorizationStatus, CaAuthorization, CaChallenge, CaOrder, CaOrderStatus, ChallengeMethod};
pub use renewal_info::CertificateId;

/// How often one step is tried again at once when the CA refuses its nonce (badNonce, RFC 8555 section 6.5). Each try
/// is up to three requests inside instant_acme; at half of all nonces refused, 8 tries fail once in 16 million steps.
const NONCE_TRIES: u32 = 8;
