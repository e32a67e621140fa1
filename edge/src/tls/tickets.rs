//! Session tickets: one key for all workers, replaced every hour, in memory only.
//!
//! A ticket is sealed, so no worker stores anything. rustls binds each ticket to the server name and refuses it for
//! another, so a shared key does not tie tenants together; what else a session hangs on goes into the seal as associated
//! data ([`Tickets::seal`]). Old tickets are taken for one more hour: forward secrecy of resumed sessions begins two
//! hours back.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use rustls::server::ProducesTickets;
use zeroize::Zeroizing;

/// The ticket keys in force. Clones of the `Arc` share them.
pub struct Tickets {
    keys: ArcSwap<Keys>,
}

struct Keys {
    current: Arc<TicketKey>,
    previous: Option<Arc<TicketKey>>,
}

/// A ticket is the key's name, a nonce, the sealed session and its tag.
struct TicketKey {
    name: [u8; KEY_NAME_BYTES],
    key: RandomizedNonceKey,
}

/// How long a key seals new tickets, and then how long it still opens old ones. A nonce of 96 random bits is good for
/// 2^32 tickets of one key (NIST SP 800-38D section 8.3): a million each second.
pub const TICKET_KEY_SECONDS: u32 = 3600;
const KEY_NAME_BYTES: usize = 16;

impl Tickets {
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn new() -> Result<Self, rustls::Error> {
        let current = Arc::new(TicketKey::generate()?);
        Ok(Self { keys: ArcSwap::from_pointee(Keys { current, previous: None }) })
    }

    /// Begins a new key; to be called every [`TICKET_KEY_SECONDS`]. The key before the last is forgotten.
    ///
    /// # Errors
    /// As [`Tickets::new`]; the present key stays.
    pub fn rotate(&self) -> Result<(), rustls::Error> {
        let current = Arc::new(TicketKey::generate()?);
        let previous = Some(Arc::clone(&self.keys.load().current));
        self.keys.store(Arc::new(Keys { current, previous }));
        Ok(())
    }

    /// A ticket that opens only for who gives the same `binding`.
    pub fn seal(&self, binding: &[u8], session: &[u8]) -> Option<Vec<u8>> {
        self.keys.load().current.seal(binding, session)
    }

    /// What was sealed; None for a ticket of a forgotten key or of another binding, and for what is no ticket of ours.
    pub fn open(&self, binding: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.load();
        let key = [Some(&keys.current), keys.previous.as_ref()]
            .into_iter()
            .flatten()
            .find(|key| ticket.starts_with(&key.name))?;
        key.open(binding, ticket)
    }
}

impl TicketKey {
    fn generate() -> Result<Self, rustls::Error> {
        let mut secret = Zeroizing::new([0; 32]);
        let mut name = [0; KEY_NAME_BYTES];
        let random = |bytes: &mut [u8]| {
            aws_lc_rs::rand::fill(bytes).map_err(|_| rustls::Error::FailedToGetRandomBytes)
        };
        random(secret.as_mut_slice())?;
        random(&mut name)?;
        let key = RandomizedNonceKey::new(&AES_256_GCM, secret.as_slice())
            .map_err(|_| rustls::Error::General("AES-256-GCM takes a key of 32 bytes".to_owned()))?;
        Ok(Self { name, key })
    }

    fn seal(&self, binding: &[u8], session: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = Zeroizing::new(Vec::with_capacity(session.len() + AES_256_GCM.tag_len()));
        sealed.extend_from_slice(session);
        let nonce = self.key.seal_in_place_append_tag(Aad::from(binding), &mut *sealed).ok()?;
        Some([&self.name[..], nonce.as_ref(), &sealed[..]].concat())
    }

    fn open(&self, binding: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.get(KEY_NAME_BYTES..)?.split_at_checked(NONCE_LEN)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let session = self.key.open_in_place(nonce, Aad::from(binding), &mut bytes).ok()?;
        Some(session.to_vec())
    }
}

/// For sessions that hang on nothing but their server name.
impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        2 * TICKET_KEY_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.seal(&[], plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.open(&[], cipher)
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Tickets")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_lives_through_one_rotation_and_not_two() {
        let tickets = Tickets::new().expect("random bytes");
        let ticket = tickets.encrypt(b"session").expect("a ticket");
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        tickets.rotate().expect("random bytes");
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        tickets.rotate().expect("random bytes");
        assert_eq!(tickets.decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_opens_with_its_own_binding_alone() {
        let tickets = Tickets::new().expect("random bytes");
        let ticket = tickets.seal(b"authorities", b"session").expect("a ticket");
        assert_eq!(tickets.open(b"authorities", &ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(tickets.open(b"others", &ticket), None);
        assert_eq!(tickets.decrypt(&ticket), None);
        let again = tickets.seal(b"authorities", b"session").expect("a ticket");
        assert_ne!(ticket, again, "a nonce of its own");
    }

    #[test]
    fn what_is_no_ticket_of_ours_opens_nothing() {
        let tickets = Tickets::new().expect("random bytes");
        let ticket = tickets.encrypt(b"session").expect("a ticket");
        for end in 0..ticket.len() {
            assert_eq!(tickets.decrypt(&ticket[..end]), None, "cut to {end} bytes");
        }
        for place in 0..ticket.len() {
            let mut altered = ticket.clone();
            altered[place] ^= 1;
            assert_eq!(tickets.decrypt(&altered), None, "altered at {place}");
        }
        assert_eq!(tickets.decrypt(b"garbage"), None);
    }
}
