//! Secrets at rest: what the database holds of private keys, it holds sealed.
//!
//! Two layers. The **key-encryption key** comes from a systemd credential or a 0600 file outside the data folder and is
//! never in the database or its backup. It wraps **data keys** (table `sealing_keys`), which seal the secrets. Rotation
//! wraps every data key anew and adds a fresh one for all later secrets, in one small transaction; secrets sealed
//! before stay readable. A stolen database without the key-encryption key opens nothing.
//!
//! Sealed: `u8` version (1) || 8-byte data key id || 12-byte nonce || ciphertext || 16-byte tag (AES-256-GCM, random
//! nonce). The associated data binds the secret to its purpose and row, so that a row's secret cannot be moved to
//! another row.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand;
use zeroize::Zeroizing;

use crate::secret_file::{self, SecretFileError};
use crate::store::sealing_key::{self, WrappedKey};
use crate::store::{Store, StoreError, WriteTx, meta};

const KEY_BYTES: usize = 32;
const ID_BYTES: usize = 8;
const VERSION: u8 = 1;
/// The name of the systemd credential that holds the key-encryption key.
pub const CREDENTIAL_NAME: &str = "portico-kek";
const META_KEK_ID: &str = "key_encryption_key_id";

/// Seals and opens secrets of the database. Clones share the keys.
#[derive(Clone)]
pub struct Sealer(Arc<DataKeys>);

struct DataKeys {
    current: [u8; ID_BYTES],
    keys: HashMap<[u8; ID_BYTES], LessSafeKey>,
}

/// The key-encryption key, and where it was read.
pub struct KeyEncryptionKey {
    bytes: Zeroizing<[u8; KEY_BYTES]>,
    source: String,
}

/// Why a secret or a key cannot be used. Never carries key bytes.
#[derive(Debug, thiserror::Error)]
pub enum SealerError {
    #[error(
        "no key-encryption key: set key_encryption_key_file or the systemd credential {CREDENTIAL_NAME}, \
         or start once with --create-kek to make one"
    )]
    NoKey,
    #[error(
        "the key-encryption key {path} is not there: put back the key that the database was sealed with, or, where there \
         is no database yet, start once with --create-kek to make one"
    )]
    Missing { path: PathBuf },
    #[error("the key-encryption key at {path} cannot be read or written")]
    File { path: PathBuf, source: io::Error },
    #[error("the key-encryption key: {0}")]
    Read(#[from] SecretFileError),
    #[error(
        "the key-encryption key at {path} lies inside the data folder {data}; a backup of that folder would carry \
         its own key: move the key elsewhere"
    )]
    InsideData { path: PathBuf, data: PathBuf },
    #[error("the key-encryption key at {source_name} must be 32 bytes or 64 hex digits")]
    Length { source_name: String },
    #[error(
        "the key-encryption key at {source_name} is not the one that this database was sealed with (id {wanted}, \
         given {given}); give the right key; if a rotation was interrupted, run `portico control-plane rotate-kek` again"
    )]
    Wrong { source_name: String, wanted: String, given: String },
    #[error(
        "a sealed secret for {purpose} cannot be opened: it was altered, moved, or sealed with a lost key"
    )]
    Open { purpose: &'static str },
    #[error("the system gives no random bytes")]
    Random,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl KeyEncryptionKey {
    /// Reads the key: the systemd credential when there is one, else `file`.
    ///
    /// # Errors
    /// [`SealerError`] when there is none, when its file is readable by others, or lies inside `data`.
    pub fn load(file: Option<&Path>, data: &Path) -> Result<Self, SealerError> {
        match (credential(), file) {
            (Some(path), _) => Self::read(&path, data),
            (None, Some(path)) if path.exists() => Self::read(path, data),
            (None, Some(path)) => Err(SealerError::Missing { path: path.to_owned() }),
            (None, None) => Err(SealerError::NoKey),
        }
    }

    /// Whether a systemd credential holds the key.
    pub(crate) fn is_credential() -> bool {
        credential().is_some()
    }

    /// Makes a new key in `file`, which must not exist.
    ///
    /// # Errors
    /// [`SealerError::File`], or [`SealerError::InsideData`].
    pub fn create(file: &Path, data: &Path) -> Result<Self, SealerError> {
        refuse_inside(file, data)?;
        let key = Self::generate(file.display().to_string())?;
        key.write_new(file)?;
        Ok(key)
    }

    pub(crate) fn generate(source: String) -> Result<Self, SealerError> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        rand::fill(bytes.as_mut()).map_err(|_| SealerError::Random)?;
        Ok(Self { bytes, source })
    }

    /// A key from its bytes, for tests and for keys kept elsewhere.
    pub fn from_bytes(bytes: [u8; KEY_BYTES]) -> Self {
        Self { bytes: Zeroizing::new(bytes), source: "memory".to_owned() }
    }

    pub(crate) fn write_new(&self, file: &Path) -> Result<(), SealerError> {
        let failed = |source| SealerError::File { path: file.to_owned(), source };
        let mut out =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file).map_err(failed)?;
        let text = Zeroizing::new(hex::encode(self.bytes.as_ref()) + "\n");
        out.write_all(text.as_bytes()).and_then(|()| out.sync_all()).map_err(failed)
    }

    pub(crate) fn read(path: &Path, data: &Path) -> Result<Self, SealerError> {
        refuse_inside(path, data)?;
        let content = secret_file::read(path)?;
        let bytes = parse_key(&content)
            .ok_or_else(|| SealerError::Length { source_name: path.display().to_string() })?;
        Ok(Self { bytes, source: path.display().to_string() })
    }

    /// Names this key without telling it: 16 hex digits.
    pub fn id(&self) -> String {
        hex::encode(key_id(b"portico key-encryption key", &self.bytes))
    }

    fn cipher(&self) -> LessSafeKey {
        cipher(&self.bytes)
    }
}

impl Sealer {
    /// Unwraps the data keys of `store`; a new store gets its first one.
    ///
    /// # Errors
    /// [`SealerError::Wrong`] when another key-encryption key wrapped them; the store's.
    pub async fn load(store: &Store, kek: &KeyEncryptionKey, now_ms: i64) -> Result<Self, SealerError> {
        let mut tx = store.begin().await?;
        match meta::find(&mut tx, META_KEK_ID).await? {
            None => {
                meta::put(&mut tx, META_KEK_ID, &kek.id()).await?;
                add_data_key(&mut tx, kek, now_ms).await?;
            }
            Some(wanted) if wanted == kek.id() => {}
            Some(wanted) => {
                return Err(SealerError::Wrong { source_name: kek.source.clone(), wanted, given: kek.id() });
            }
        }
        let keys = sealing_key::all(&mut tx).await?;
        tx.commit().await?;
        let mut unwrapped = HashMap::new();
        let mut current = [0; ID_BYTES];
        for key in &keys {
            let bytes = unwrap(&kek.cipher(), key)?;
            current = key_id(b"portico data key", &bytes);
            unwrapped.insert(current, cipher(&bytes));
        }
        Ok(Self(Arc::new(DataKeys { current, keys: unwrapped })))
    }

    /// Seals `plain` for one purpose ("order-key", "account", ..) and one row.
    ///
    /// # Panics
    /// When the system gives no random bytes, which on Linux happens only before the machine has booted.
    pub fn seal(&self, purpose: &'static str, row: &str, plain: &[u8]) -> Vec<u8> {
        let key = self.0.keys.get(&self.0.current).expect("load put the current data key into the map");
        let mut sealed = vec![VERSION];
        sealed.extend_from_slice(&self.0.current);
        sealed.extend(encrypt(key, &associated(purpose, row), plain));
        sealed
    }

    /// Opens what [`Sealer::seal`] made for the same purpose and row.
    ///
    /// # Errors
    /// [`SealerError::Open`].
    pub fn open(
        &self,
        purpose: &'static str,
        row: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, SealerError> {
        let failed = || SealerError::Open { purpose };
        let (&version, rest) = sealed.split_first().ok_or_else(failed)?;
        let (id, body) = rest.split_first_chunk::<ID_BYTES>().ok_or_else(failed)?;
        let key = self.0.keys.get(id).filter(|_| version == VERSION).ok_or_else(failed)?;
        decrypt(key, &associated(purpose, row), body).ok_or_else(failed)
    }
}

/// Wraps all data keys by `new` instead of `old` and adds a fresh data key, in one transaction. Done already, it does
/// nothing.
///
/// # Errors
/// [`SealerError::Wrong`] when `old` is not the present key; the store's. Nothing is changed then.
pub async fn rotate(
    store: &Store,
    old: &KeyEncryptionKey,
    new: &KeyEncryptionKey,
    now_ms: i64,
) -> Result<(), SealerError> {
    let mut tx = store.begin().await?;
    let wanted = meta::find(&mut tx, META_KEK_ID).await?.unwrap_or_default();
    if wanted == new.id() {
        return Ok(());
    }
    if wanted != old.id() {
        return Err(SealerError::Wrong { source_name: old.source.clone(), wanted, given: old.id() });
    }
    for key in sealing_key::all(&mut tx).await? {
        let bytes = unwrap(&old.cipher(), &key)?;
        let wrapped = encrypt(&new.cipher(), &associated("data key", &key.id), bytes.as_ref());
        sealing_key::rewrap(&mut tx, &WrappedKey { id: key.id, wrapped }).await?;
    }
    add_data_key(&mut tx, new, now_ms).await?;
    meta::put(&mut tx, META_KEK_ID, &new.id()).await?;
    tx.commit().await?;
    Ok(())
}

fn credential() -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY")?;
    Some(Path::new(&folder).join(CREDENTIAL_NAME)).filter(|path| path.exists())
}

async fn add_data_key(tx: &mut WriteTx, kek: &KeyEncryptionKey, now_ms: i64) -> Result<(), SealerError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    rand::fill(bytes.as_mut()).map_err(|_| SealerError::Random)?;
    let id = hex::encode(key_id(b"portico data key", &bytes));
    let wrapped = encrypt(&kek.cipher(), &associated("data key", &id), bytes.as_ref());
    sealing_key::insert(tx, &WrappedKey { id, wrapped }, now_ms).await?;
    Ok(())
}

fn unwrap(kek: &LessSafeKey, key: &WrappedKey) -> Result<Zeroizing<[u8; KEY_BYTES]>, SealerError> {
    let failed = || SealerError::Open { purpose: "data key" };
    let plain = decrypt(kek, &associated("data key", &key.id), &key.wrapped).ok_or_else(failed)?;
    Ok(Zeroizing::new(plain.as_slice().try_into().map_err(|_| failed())?))
}

fn cipher(bytes: &[u8; KEY_BYTES]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).expect("32 bytes are an AES-256 key"))
}

fn encrypt(key: &LessSafeKey, associated: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut nonce = [0; NONCE_LEN];
    rand::fill(&mut nonce).expect("the system gives random bytes");
    let mut body = plain.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(associated), &mut body)
        .expect("a secret is far below AES-GCM's limit of 64 GiB");
    let mut out = nonce.to_vec();
    out.append(&mut body);
    out
}

fn decrypt(key: &LessSafeKey, associated: &[u8], body: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let (nonce, ciphertext) = body.split_first_chunk::<NONCE_LEN>()?;
    let mut plain = Zeroizing::new(ciphertext.to_vec());
    let length = key
        .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(associated), &mut plain)
        .ok()?
        .len();
    plain.truncate(length);
    Some(plain)
}

/// Length-prefixed, so that no two pairs have the same bytes.
fn associated(purpose: &str, row: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(16 + purpose.len() + row.len());
    for field in [purpose, row] {
        out.extend_from_slice(&(field.len() as u64).to_be_bytes());
        out.extend_from_slice(field.as_bytes());
    }
    out
}

fn key_id(label: &[u8], key: &[u8; KEY_BYTES]) -> [u8; ID_BYTES] {
    let message = Zeroizing::new([label, key.as_slice()].concat());
    let hash = digest(&SHA256, &message);
    *hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes")
}

fn refuse_inside(path: &Path, data: &Path) -> Result<(), SealerError> {
    // The folder may not exist yet; a path through `..` or a link must not hide that it leads into it.
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let failed = |source| SealerError::File { path: path.to_owned(), source };
    let parent = parent.canonicalize().map_err(failed)?;
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let real = path.canonicalize().unwrap_or_else(|_| parent.join(path.file_name().unwrap_or_default()));
    if real.starts_with(&data) || same_folder(&parent, &data) {
        return Err(SealerError::InsideData { path: path.to_owned(), data });
    }
    Ok(())
}

fn same_folder(a: &Path, b: &Path) -> bool {
    match (fs::metadata(a), fs::metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

fn parse_key(content: &[u8]) -> Option<Zeroizing<[u8; KEY_BYTES]>> {
    if let Ok(bytes) = <[u8; KEY_BYTES]>::try_from(content) {
        return Some(Zeroizing::new(bytes));
    }
    let text = std::str::from_utf8(content).ok()?.trim();
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    hex::decode_to_slice(text, bytes.as_mut()).ok()?;
    Some(bytes)
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("current", &hex::encode(&self.0.current)).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyEncryptionKey").field("source", &self.source).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    async fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::for_tests(folder.path()).await.unwrap();
        (folder, store)
    }

    #[tokio::test]
    async fn a_secret_opens_only_for_its_purpose_and_row_and_unaltered() {
        let (_folder, store) = store().await;
        let sealer = Sealer::load(&store, &KeyEncryptionKey::from_bytes([7; 32]), 1).await.unwrap();
        let sealed = sealer.seal("order-key", "ord_1", b"secret");
        assert_eq!(sealer.open("order-key", "ord_1", &sealed).unwrap().as_slice(), b"secret");
        assert!(sealer.open("order-key", "ord_2", &sealed).is_err());
        assert!(sealer.open("account", "ord_1", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut altered = sealed.clone();
            altered[at] ^= 1;
            assert!(sealer.open("order-key", "ord_1", &altered).is_err(), "byte {at}");
            assert!(sealer.open("order-key", "ord_1", &sealed[..at]).is_err(), "cut at {at}");
        }
        assert_ne!(sealed, sealer.seal("order-key", "ord_1", b"secret"), "nonces differ");
    }

    #[tokio::test]
    async fn rotation_keeps_old_secrets_readable_and_shuts_out_the_old_key() {
        let (_folder, store) = store().await;
        let (old, new) = (KeyEncryptionKey::from_bytes([1; 32]), KeyEncryptionKey::from_bytes([2; 32]));
        let before = Sealer::load(&store, &old, 1).await.unwrap();
        let sealed = before.seal("account", "a", b"from before");

        let third = KeyEncryptionKey::from_bytes([3; 32]);
        assert!(matches!(rotate(&store, &third, &new, 2).await, Err(SealerError::Wrong { .. })));
        rotate(&store, &old, &new, 2).await.unwrap();

        let after = Sealer::load(&store, &new, 3).await.unwrap();
        assert_eq!(after.open("account", "a", &sealed).unwrap().as_slice(), b"from before");
        let fresh = after.seal("account", "a", b"from after");
        assert!(before.open("account", "a", &fresh).is_err(), "later secrets use a fresh data key");
        let error = Sealer::load(&store, &old, 4).await.unwrap_err();
        assert!(matches!(error, SealerError::Wrong { .. }), "{error}");
    }

    #[test]
    fn a_key_file_that_others_read_or_that_a_backup_would_carry_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let inside = data.join("kek");
        assert!(matches!(KeyEncryptionKey::create(&inside, &data), Err(SealerError::InsideData { .. })));

        let file = folder.path().join("kek");
        let made = KeyEncryptionKey::create(&file, &data).unwrap();
        assert_eq!(KeyEncryptionKey::load(Some(&file), &data).unwrap().id(), made.id());
        assert!(
            matches!(KeyEncryptionKey::create(&file, &data), Err(SealerError::File { .. })),
            "never overwritten"
        );

        let sly = folder.path().join("data/../data/kek2");
        assert!(matches!(KeyEncryptionKey::create(&sly, &data), Err(SealerError::InsideData { .. })));
        std::os::unix::fs::symlink(&file, data.join("link")).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            KeyEncryptionKey::load(Some(&file), &data),
            Err(SealerError::Read(SecretFileError::Mode { .. }))
        ));

        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&file, "abc").unwrap();
        assert!(matches!(KeyEncryptionKey::load(Some(&file), &data), Err(SealerError::Length { .. })));
        assert!(matches!(KeyEncryptionKey::load(None, &data), Err(SealerError::NoKey)));
    }
}
