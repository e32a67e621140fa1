//! What every part of the control plane shares: configuration, store, sealer, clock and the signal to end.

use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::config::Config;
use crate::sealer::{KeyEncryptionKey, Sealer};
use crate::store::lease::Term;
use crate::store::{DATABASE_FILE, Store};

/// Shared by all parts; clones are cheap.
#[derive(Clone, Debug)]
pub struct Parts {
    pub config: Arc<Config>,
    pub store: Store,
    /// Which control plane this is, of those on one database.
    pub replica: String,
    pub sealer: Sealer,
    pub clock: Clock,
    /// Cancelled when the process is asked to end; every task stops then.
    pub shutdown: CancellationToken,
    /// Held for the life of the process: one control plane for one data folder.
    _lock: Arc<DataLock>,
}

/// An advisory lock on the data folder. Released when dropped, also by a kill.
#[derive(Debug)]
pub struct DataLock(#[expect(dead_code, reason = "held for its lock")] File);

impl Parts {
    /// Opens what `config` names.
    ///
    /// # Errors
    /// Says which of folder, key or database is at fault, and what to do.
    pub async fn open(config: Config, clock: Clock) -> anyhow::Result<Self> {
        prepare_folder(&config.data)?;
        let lock = DataLock::take(&config.data)?;
        let kek = KeyEncryptionKey::load(config.key_encryption_key_file.as_deref(), &config.data)?;
        let store = open_store(&config).await?;
        let replica = if store.is_shared() { replica_id(&config.data)? } else { "the only one".to_owned() };
        let sealer = Sealer::load(&store, &kek, clock.now_ms()).await?;
        Ok(Self {
            config: Arc::new(config),
            store,
            replica,
            sealer,
            clock,
            shutdown: CancellationToken::new(),
            _lock: Arc::new(lock),
        })
    }

    /// The same for the work of a term.
    pub(crate) fn within(&self, term: Term) -> Self {
        Self { store: self.store.within(term), ..self.clone() }
    }
}

/// Opens the database that the configuration names.
///
/// # Errors
/// The store's, or the password cannot be read.
pub(crate) async fn open_store(config: &Config) -> anyhow::Result<Store> {
    let Some(server) = config.server()? else { return Ok(Store::open(&config.data).await?) };
    let file = config.data.join(DATABASE_FILE);
    ensure!(
        !file.exists(),
        "database is set, and {} holds what was stored before: nothing of it comes along, so edges and tenants would be \
         strangers; take `database` out again, or move the file away to begin anew",
        file.display()
    );
    Ok(Store::connect(&server).await?)
}

/// Made once for a data folder, so that a restart finds what it held.
fn replica_id(data: &Path) -> anyhow::Result<String> {
    let path = data.join("replica");
    if !path.exists() {
        let made = data.join("replica.new");
        fs::write(&made, ulid::Ulid::new().to_string())?;
        File::open(&made)?.sync_all()?;
        fs::rename(&made, &path)?;
    }
    let id = fs::read_to_string(&path)?.trim().to_owned();
    ensure!(id.parse::<ulid::Ulid>().is_ok(), "{} holds no id; remove it to get another", path.display());
    Ok(id)
}

impl DataLock {
    /// # Errors
    /// When another process holds it.
    pub fn take(data: &Path) -> anyhow::Result<Self> {
        let path = data.join("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).with_context(
            || format!("{} is in use by another process; stop that control plane first", data.display()),
        )?;
        Ok(Self(file))
    }
}

/// Makes the data folder with mode 0700; one that others may enter is refused.
fn prepare_folder(data: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("make the data folder {}", data.display()))?;
    let mode = fs::metadata(data)?.permissions().mode() & 0o777;
    ensure!(mode & 0o077 == 0, "the data folder {} has mode {mode:04o}; chmod 700 it", data.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_stored_in_a_file_is_not_left_behind_unseen() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        let text = format!(
            "data = {data:?}\napi = \"127.0.0.1:0\"\ndistribution = \"127.0.0.1:0\"\n\
             database = \"postgresql://portico@127.0.0.1:1/portico\"\n"
        );
        let config = Config::parse(&text, Path::new("cp.toml")).unwrap();
        let refused = async || format!("{:#}", open_store(&config).await.unwrap_err());
        assert!(refused().await.contains("nobody answers there"), "nothing is stored yet");
        fs::create_dir(&data).unwrap();
        fs::write(data.join(DATABASE_FILE), "").unwrap();
        let text = refused().await;
        assert!(text.contains("nothing of it comes along") && text.contains("portico.db"), "{text}");
    }

    #[test]
    fn a_control_plane_is_the_same_one_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let id = replica_id(folder.path()).unwrap();
        assert_eq!(replica_id(folder.path()).unwrap(), id);
        fs::write(folder.path().join("replica"), "\n").unwrap();
        let refused = replica_id(folder.path()).unwrap_err().to_string();
        assert!(refused.contains("holds no id"), "{refused}");
    }
}
