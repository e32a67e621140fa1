//! Keys that this edge makes and that are nowhere else, one private file for each: `<SHA-256 of the public key>.key`, PKCS#8.
//!
//! The control plane orders a certificate with the edge's request; beside a key that waits for its certificate lies
//! `<order id>.order`, which says whose it is, so that the order gets the same key after a restart. A key is deleted when what
//! has served with it is off the edge and off its last-good files, and one whose certificate never came after
//! [`limits::OWN_KEY_WAITS_MAX`]. In memory they are sealed as all others are, by a data key of this process alone.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use portico_api::distribution::{KEY_REQUEST_NAMES_MAX, KeyRequest};
use portico_cert_store::{
    CellId, CellKey, CellKeys, KeyType, NamePattern, OrderId, PrivateKey, SealContext, SealedKey,
};

use super::files::{self, FileError};
use super::limits;
use crate::live::{Fault, full_text};

/// The epoch of this process's own data key; those of the control plane begin with 1.
pub(crate) const OWN_EPOCH: u32 = 0;

/// Of what control planes ask for; an RSA key would take a second.
const ORDERED_KEY: KeyType = KeyType::EcdsaP256;
/// How a request calls it.
const ORDERED_KEY_NAME: &str = "ecdsa-p256";

/// The folder of them; clones share one.
#[derive(Clone)]
pub struct OwnKeys(Arc<Folder>);

struct Folder {
    path: PathBuf,
    cell: CellId,
    cell_keys: CellKeys,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    /// By the SHA-256 of the public key.
    keys: HashMap<Spki, Use>,
    /// Which of them wait for their certificates.
    ordered: BTreeMap<OrderId, Spki>,
    /// When something was settled first; Unix time.
    first_settled: Option<Duration>,
}

type Spki = [u8; 32];

/// What a key is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Use {
    /// A credential that is held has it.
    Served,
    /// Its certificate has not come.
    Ordered(OrderId),
    /// It lay here when the edge started, and nothing has referred to it since.
    Unknown,
}

impl OwnKeys {
    /// Looks at what there is, and gives `cell_keys` the data key that it is sealed by in memory.
    ///
    /// # Errors
    /// [`FileError`]: the folder cannot be read, or others can read it.
    pub(super) fn open(path: &Path, cell: &CellId, cell_keys: &CellKeys) -> Result<Self, FileError> {
        files::private_folder(path)?;
        cell_keys.add(CellKey::generate(cell.clone(), OWN_EPOCH));
        let mut held = Held::default();
        let mut orders = Vec::new();
        for name in files::names(path)? {
            let Some((stem, extension)) = name.rsplit_once('.') else { continue };
            match extension {
                "key" => held.keys.extend(parse_spki(stem).map(|spki| (spki, Use::Unknown))),
                "order" => orders.extend(OrderId::from_str(stem).ok()),
                // What a crash has left half written, a key may be in it.
                "new" => files::remove(&path.join(&name))?,
                _ => {}
            }
        }
        for order in orders {
            let file = order_file(path, order);
            let spki = files::read_private(&file, limits::OWN_KEY_FILE_BYTES_MAX)?;
            let spki = spki.and_then(parse_spki).filter(|spki| held.keys.contains_key(spki));
            match spki {
                Some(spki) => held.order(order, spki),
                None => files::remove(&file)?,
            }
        }
        let (path, cell, cell_keys, held) =
            (path.to_owned(), cell.clone(), cell_keys.clone(), Mutex::new(held));
        Ok(Self(Arc::new(Folder { path, cell, cell_keys, held })))
    }

    /// A request (PKCS#10, DER) for a certificate for an order's names, by the key that was made for the order, now or before.
    ///
    /// # Errors
    /// [`Fault`]: the request asks for what is not made here, or the disk does not take the key.
    pub(super) fn request(&self, wanted: &KeyRequest) -> Result<Vec<u8>, Fault> {
        let bad = |text: String| Fault::new("BadKeyRequest", text);
        let order = OrderId::from_str(&wanted.order_id).map_err(|error| bad(error.to_string()))?;
        if !(1..=KEY_REQUEST_NAMES_MAX).contains(&wanted.names.len()) {
            return Err(bad(format!("{} names; 1 to {KEY_REQUEST_NAMES_MAX}", wanted.names.len())));
        }
        let names = wanted.names.iter().map(|name| NamePattern::parse(name));
        let names: Vec<NamePattern> =
            names.collect::<Result<_, _>>().map_err(|error| bad(error.to_string()))?;
        if wanted.key_type != ORDERED_KEY_NAME {
            let other = wanted.key_type.escape_debug();
            return Err(bad(format!("no key of type `{other:.32}` is made here")));
        }
        let mut held = self.lock();
        let key = match held.ordered.get(&order).copied() {
            None => self.make(&mut held, order)?,
            Some(known) => match self.read(&known) {
                Ok(Some(key)) => key,
                // It will not serve; another takes its place.
                Ok(None) | Err(_) => {
                    self.delete(&mut held, &known).map_err(not_stored)?;
                    self.make(&mut held, order)?
                }
            },
        };
        key.csr(&names).map_err(|error| Fault::new("KeyNotMade", error.to_string()))
    }

    fn make(&self, held: &mut Held, order: OrderId) -> Result<PrivateKey, Fault> {
        let key = PrivateKey::generate(ORDERED_KEY).map_err(|e| Fault::new("KeyNotMade", e.to_string()))?;
        let spki = key.spki_sha256();
        files::write_private(&self.key_file(&spki), key.secret_der()).map_err(not_stored)?;
        if let Err(error) = files::write_private(&self.order_file(order), hex::encode(spki).as_bytes()) {
            // Nobody would know what it is for.
            let _left = files::unlink(&self.key_file(&spki));
            return Err(not_stored(error));
        }
        held.order(order, spki);
        self.bound(held).map_err(not_stored)?;
        Ok(key)
    }

    /// What waits longest goes first: it is the least likely to come.
    fn bound(&self, held: &mut Held) -> Result<(), FileError> {
        if held.ordered.len() <= limits::OWN_KEYS_WAITING_MAX {
            return Ok(());
        }
        let Some((order, spki)) = held.ordered.first_key_value().map(|(order, spki)| (*order, *spki)) else {
            return Ok(());
        };
        tracing::warn!(%order, "too many keys wait for their certificates; this one is deleted");
        self.delete(held, &spki)?;
        files::sync_folder(&self.0.path)
    }

    /// The key of a public key's hash, sealed for a credential as those of the cell are.
    ///
    /// # Errors
    /// [`Fault`], when it is not here.
    pub(crate) fn sealed(&self, context: &SealContext<'_>) -> Result<SealedKey, Fault> {
        let damaged = |text: String| Fault::new("KeyDoesNotOpen", text);
        let key = self.read(&context.spki_sha256).map_err(|error| damaged(full_text(&error)))?;
        let key = key.ok_or_else(|| not_here(context.cell))?;
        let seal = self.0.cell_keys.find(&self.0.cell, OWN_EPOCH);
        let seal =
            seal.ok_or_else(|| damaged("this process has lost the key that it seals by".to_owned()))?;
        seal.seal(&key, context).map_err(|error| damaged(error.to_string()))
    }

    /// Deletes what no credential needs any more. `in_use`: the keys of all that are held, with the last-good files saying so.
    ///
    /// # Errors
    /// [`FileError`]; what was not deleted is tried again with the next call.
    pub(super) fn delete_unused(&self, in_use: &HashSet<Spki>, now: Duration) -> Result<(), FileError> {
        let mut held = self.lock();
        let first_settled = *held.first_settled.get_or_insert(now);
        let mut is_synced = true;
        for spki in in_use {
            if let Some(Use::Ordered(order)) = held.keys.insert(*spki, Use::Served) {
                held.ordered.remove(&order);
                files::unlink(&self.order_file(order))?;
                is_synced = false;
            }
        }
        let is_over = |used: &Use| match *used {
            Use::Served => true,
            Use::Ordered(order) => now.saturating_sub(planned_at(order)) > limits::OWN_KEY_WAITS_MAX,
            Use::Unknown => now.saturating_sub(first_settled) > limits::OWN_KEY_UNKNOWN_MAX,
        };
        let unused = held.keys.iter().filter(|(spki, used)| !in_use.contains(*spki) && is_over(used));
        let unused: Vec<(Spki, Use)> = unused.map(|(spki, used)| (*spki, *used)).collect();
        for (spki, used) in unused {
            self.delete(&mut held, &spki)?;
            is_synced = false;
            tracing::info!(spki_sha256 = hex::encode(spki), was = ?used, "a key that nothing uses any more is deleted");
        }
        if is_synced { Ok(()) } else { files::sync_folder(&self.0.path) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.lock().keys.is_empty()
    }

    /// The folder is to be synced afterwards.
    fn delete(&self, held: &mut Held, spki: &Spki) -> Result<(), FileError> {
        files::unlink(&self.key_file(spki))?;
        if let Some(Use::Ordered(order)) = held.keys.get(spki).copied() {
            files::unlink(&self.order_file(order))?;
            held.ordered.remove(&order);
        }
        held.keys.remove(spki);
        Ok(())
    }

    fn read(&self, spki: &Spki) -> Result<Option<PrivateKey>, FileError> {
        let path = self.key_file(spki);
        let pkcs8 = files::read_private(&path, limits::OWN_KEY_FILE_BYTES_MAX)?;
        let key = pkcs8.map(|pkcs8| PrivateKey::from_pkcs8_der(&pkcs8));
        key.transpose().map_err(|_| FileError::Damaged { path })
    }

    fn key_file(&self, spki: &Spki) -> PathBuf {
        self.0.path.join(hex::encode(spki)).with_extension("key")
    }

    fn order_file(&self, order: OrderId) -> PathBuf {
        order_file(&self.0.path, order)
    }

    /// Held over writes and their syncs, by threads for disks.
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn order(&mut self, order: OrderId, spki: Spki) {
        self.keys.insert(spki, Use::Ordered(order));
        self.ordered.insert(order, spki);
    }
}

impl fmt::Debug for OwnKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnKeys").field("folder", &self.0.path).finish_non_exhaustive()
    }
}

/// What to do about a key that is not where its certificate is.
pub(crate) fn not_here(cell: &CellId) -> Fault {
    let text = format!(
        "the key was made by an edge of cell {cell} and is not in `keys` of this edge's state folder: put the folder back, or \
         run `portico cell rekey {cell}`, which gives the cell's certificates new keys"
    );
    Fault::new("KeyNotHere", text)
}

fn order_file(folder: &Path, order: OrderId) -> PathBuf {
    folder.join(format!("{order}.order"))
}

fn planned_at(order: OrderId) -> Duration {
    Duration::from_millis(order.ulid().timestamp_ms())
}

fn parse_spki(text: impl AsRef<[u8]>) -> Option<Spki> {
    let mut spki = [0; 32];
    hex::decode_to_slice(text, &mut spki).ok()?;
    Some(spki)
}

fn not_stored(error: FileError) -> Fault {
    Fault::new("NotStored", full_text(&error))
}

#[cfg(test)]
mod tests;
