//! Session tickets: one key for all workers, replaced every hour, in memory only. A successor begins with a key of its own
//! and opens the tickets of its predecessor's, so that clients do not notice a hot restart.
//!
//! A ticket is sealed, so no worker stores anything. rustls binds each ticket to the server name and refuses it for
//! another, so a shared key does not tie tenants together; what else a session hangs on goes into the seal as associated
//! data ([`Tickets::seal`]). Old tickets are taken for one more hour: forward secrecy of resumed sessions begins two
//! hours back.

use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use rustls::server::ProducesTickets;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

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
    secret: TicketSecret,
    key: RandomizedNonceKey,
}

/// A key on its way to a successor; wiped when dropped.
#[derive(Clone, Serialize, Deserialize)]
pub struct TicketSecret {
    name: [u8; KEY_NAME_BYTES],
    key: [u8; 32],
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

    /// The key that seals now, for a successor.
    pub fn secret(&self) -> TicketSecret {
        self.keys.load().current.secret.clone()
    }

    /// Opens a predecessor's tickets as those of our own previous key: until the next rotation.
    ///
    /// # Errors
    /// When the cipher does not take the key, which has its length.
    pub fn succeed(&self, secret: TicketSecret) -> Result<(), rustls::Error> {
        let previous = Some(Arc::new(TicketKey::of(secret)?));
        let current = Arc::clone(&self.keys.load().current);
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
            .find(|key| ticket.starts_with(&key.secret.name))?;
        key.open(binding, ticket)
    }
}

impl TicketKey {
    fn generate() -> Result<Self, rustls::Error> {
        let mut secret = TicketSecret { name: [0; KEY_NAME_BYTES], key: [0; 32] };
        let random = |bytes: &mut [u8]| {
            aws_lc_rs::rand::fill(bytes).map_err(|_| rustls::Error::FailedToGetRandomBytes)
        };
        random(&mut secret.key)?;
        random(&mut secret.name)?;
        Self::of(secret)
    }

    fn of(secret: TicketSecret) -> Result<Self, rustls::Error> {
        let key = RandomizedNonceKey::new(&AES_256_GCM, &secret.key)
            .map_err(|_| rustls::Error::General("AES-256-GCM takes a key of 32 bytes".to_owned()))?;
        Ok(Self { secret, key })
    }

    fn seal(&self, binding: &[u8], session: &[u8]) -> Option<Vec<u8>> {
        let mut sealed = Zeroizing::new(Vec::with_capacity(session.len() + AES_256_GCM.tag_len()));
        sealed.extend_from_slice(session);
        let nonce = self.key.seal_in_place_append_tag(Aad::from(binding), &mut *sealed).ok()?;
        Some([&self.secret.name[..], nonce.as_ref(), &sealed[..]].concat())
    }

    fn open(&self, binding: &[u8], ticket: &[u8]) -> Option<Vec<u8>> {
        let (nonce, sealed) = ticket.get(KEY_NAME_BYTES..)?.split_at_checked(NONCE_LEN)?;
        let mut bytes = Zeroizing::new(sealed.to_vec());
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let session = self.key.open_in_place(nonce, Aad::from(binding), &mut bytes).ok()?;
        Some(session.to_vec())
    }
}

impl Drop for TicketSecret {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

impl std::fmt::Debug for TicketSecret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("TicketSecret")
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
    fn a_successor_opens_its_predecessors_tickets_until_it_rotates() {
        let (old, new) = (Tickets::new().expect("random bytes"), Tickets::new().expect("random bytes"));
        let ticket = old.seal(b"x", b"session").expect("a ticket");
        assert_eq!(new.open(b"x", &ticket), None);
        let text = serde_json::to_string(&old.secret()).expect("JSON");
        new.succeed(serde_json::from_str(&text).expect("the same")).expect("a key");
        assert_eq!(new.open(b"x", &ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(new.open(b"y", &ticket), None);
        let own = new.seal(b"x", b"own").expect("a ticket");
        assert_eq!(old.open(b"x", &own), None, "sealed by a key of its own");
        new.rotate().expect("random bytes");
        assert_eq!(new.open(b"x", &ticket), None);
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
