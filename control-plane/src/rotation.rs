//! `rotate-kek`: another key-encryption key in the place of the present one, with the control plane stopped.
//!
//! The steps are ordered so that a kill between any two leaves a state from which the same command goes on: the new key
//! is on disk before the database is wrapped by it, the old one is kept until then and afterwards, because backups made
//! before need it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::clock::Clock;
use crate::config::Config;
use crate::parts::{DataLock, open_store};
use crate::sealer::{self, KeyEncryptionKey};
use crate::store::{Store, lease};

/// What a rotation did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// Names the key that holds from now on.
    pub key_id: String,
    /// Where it is.
    pub new_file: PathBuf,
    /// Where the key before it is kept; `None` when it came as a systemd credential.
    pub old_file: Option<PathBuf>,
}

/// Wraps every data key by a new key-encryption key. A key from a file is replaced in that file; for a systemd
/// credential, `new_file` says where to write the new key, which the operator then puts in the credential's place.
///
/// # Errors
/// The control plane runs, a key cannot be read or written, or the present key is not the database's.
pub async fn rotate_kek(config: &Config, new_file: Option<&Path>, clock: &Clock) -> anyhow::Result<Rotated> {
    let _lock = DataLock::take(&config.data)?;
    let file = config.key_encryption_key_file.as_deref();
    let old = KeyEncryptionKey::load(file, &config.data)?;
    let in_place = file.filter(|_| new_file.is_none() && !KeyEncryptionKey::is_credential());
    let target = match (new_file, in_place) {
        (Some(target), _) => target.to_owned(),
        (None, Some(file)) => beside(file, "new"),
        (None, None) => anyhow::bail!(
            "the key-encryption key is a systemd credential: say with --new-key-file where to write the new one"
        ),
    };
    // One that is there already was made by a run that was killed.
    let new = if target.exists() {
        KeyEncryptionKey::read(&target, &config.data)?
    } else {
        KeyEncryptionKey::create(&target, &config.data)?
    };
    let store = open_store(config).await?;
    let done = match assert_alone(&store).await {
        Ok(()) => sealer::rotate(&store, &old, &new, clock.now_ms()).await.map_err(Into::into),
        Err(error) => Err(error),
    };
    store.close().await;
    done?;
    let Some(file) = in_place else {
        return Ok(Rotated { key_id: new.id(), new_file: target, old_file: None });
    };
    let kept = beside(file, &format!("old-{}", old.id()));
    if old.id() != new.id() {
        fs::rename(file, &kept).with_context(|| format!("keep the old key as {}", kept.display()))?;
    }
    fs::rename(&target, file)
        .with_context(|| format!("put the new key in its place at {}", file.display()))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    Ok(Rotated { key_id: new.id(), new_file: file.to_owned(), old_file: Some(kept) })
}

/// The lock of a data folder says nothing about control planes with another one.
async fn assert_alone(store: &Store) -> anyhow::Result<()> {
    let held = lease::is_held(&mut *store.read().await?).await?;
    let lasts = lease::LASTS.as_secs();
    anyhow::ensure!(
        !held,
        "a control plane on this database runs: stop all of them first; one that was killed counts for {lasts} s more"
    );
    Ok(())
}

fn beside(file: &Path, extension: &str) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(extension);
    file.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::Parts;
    use crate::sealer::Sealer;

    fn config(folder: &Path) -> Config {
        let text = format!(
            "data = {:?}\napi = \"127.0.0.1:0\"\ndistribution = \"127.0.0.1:0\"\nkey_encryption_key_file = {:?}\n",
            folder.join("data"),
            folder.join("kek")
        );
        Config::parse(&text, Path::new("cp.toml")).unwrap()
    }

    #[tokio::test]
    async fn secrets_outlive_a_rotation_and_the_old_key_opens_the_database_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let (config, clock) = (config(folder.path()), Clock::default());
        let file = folder.path().join("kek");
        let before = KeyEncryptionKey::create(&file, &config.data).unwrap().id();
        let parts = Parts::open(config.clone(), clock.clone()).await.unwrap();
        let sealed = parts.sealer.seal("account", "a", b"secret");
        let running = rotate_kek(&config, None, &clock).await.unwrap_err();
        assert!(format!("{running:#}").contains("in use"), "{running:#}");
        parts.store.close().await;
        drop(parts);

        let rotated = rotate_kek(&config, None, &clock).await.unwrap();
        let kept = rotated.old_file.unwrap();
        assert_ne!(rotated.key_id, before);
        assert_eq!(KeyEncryptionKey::read(&kept, &config.data).unwrap().id(), before);
        assert!(!folder.path().join("kek.new").exists());
        let parts = Parts::open(config.clone(), clock.clone()).await.unwrap();
        assert_eq!(parts.sealer.open("account", "a", &sealed).unwrap().as_slice(), b"secret");
        let old = KeyEncryptionKey::read(&kept, &config.data).unwrap();
        assert!(Sealer::load(&parts.store, &old, 1).await.is_err());
    }

    #[tokio::test]
    async fn a_rotation_killed_between_its_steps_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let (config, clock) = (config(folder.path()), Clock::default());
        let file = folder.path().join("kek");
        KeyEncryptionKey::create(&file, &config.data).unwrap();
        let parts = Parts::open(config.clone(), clock.clone()).await.unwrap();
        let sealed = parts.sealer.seal("account", "a", b"secret");
        // Killed after the database was wrapped anew, before the files were moved.
        let new = KeyEncryptionKey::create(&folder.path().join("kek.new"), &config.data).unwrap();
        let old = KeyEncryptionKey::read(&file, &config.data).unwrap();
        sealer::rotate(&parts.store, &old, &new, 1).await.unwrap();
        parts.store.close().await;
        drop(parts);
        let refused = Parts::open(config.clone(), clock.clone()).await.unwrap_err();
        assert!(format!("{refused:#}").contains("rotate-kek"), "{refused:#}");

        assert_eq!(rotate_kek(&config, None, &clock).await.unwrap().key_id, new.id());
        let parts = Parts::open(config, clock).await.unwrap();
        assert_eq!(parts.sealer.open("account", "a", &sealed).unwrap().as_slice(), b"secret");
    }
}
