//! Session tickets: one key for all workers, replaced every hour, in memory only.
//!
//! A ticket is sealed, so no worker stores anything. rustls binds each ticket to the server name and refuses it for
//! another, so a shared key does not tie tenants together. Old tickets are taken for one more hour: forward secrecy of
//! resumed sessions begins two hours back.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{crypto::aws_lc_rs::Ticketer, server::ProducesTickets};

/// The ticket keys in force. Clones of the `Arc` share them.
pub struct Tickets {
    keys: ArcSwap<Keys>,
}

struct Keys {
    current: Arc<dyn ProducesTickets>,
    previous: Option<Arc<dyn ProducesTickets>>,
}

/// How long a key seals new tickets, and then how long it still opens old ones.
pub const TICKET_KEY_SECONDS: u32 = 3600;

impl Tickets {
    /// # Errors
    /// When the operating system gives no random bytes.
    pub fn new() -> Result<Self, rustls::Error> {
        Ok(Self { keys: ArcSwap::from_pointee(Keys { current: Ticketer::new()?, previous: None }) })
    }

    /// Begins a new key; to be called every [`TICKET_KEY_SECONDS`]. The key before the last is forgotten.
    ///
    /// # Errors
    /// As [`Tickets::new`]; the present key stays.
    pub fn rotate(&self) -> Result<(), rustls::Error> {
        let current = Ticketer::new()?;
        let previous = Some(Arc::clone(&self.keys.load().current));
        self.keys.store(Arc::new(Keys { current, previous }));
        Ok(())
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        2 * TICKET_KEY_SECONDS
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.keys.load().current.encrypt(plain)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let keys = self.keys.load();
        let previous = || keys.previous.as_ref().and_then(|key| key.decrypt(cipher));
        keys.current.decrypt(cipher).or_else(previous)
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
        assert_eq!(tickets.decrypt(b"garbage"), None);
    }
}
