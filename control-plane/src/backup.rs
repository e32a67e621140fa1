//! Backup and restore of everything that the control plane knows: one file.
//!
//! A backup is a consistent copy of the database, taken while the control plane goes on. What is secret in it is sealed
//! under a key-encryption key that is never in it: keep that key apart, a restore needs it. A restore checks file and key
//! before it touches anything, keeps the database that was there beside the new one, and raises the epoch, so that edges
//! which have followed later generations take a full snapshot instead of refusing the past.
//!
//! Deliberately absent: point-in-time recovery. What was written after the backup is gone; orders at a CA among it are
//! found again by their names and keys, not by this module.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};

mod container;

use crate::clock::Clock;
use crate::config::Config;
use crate::parts::DataLock;
use crate::sealer::{KeyEncryptionKey, Sealer};
use crate::store::{DATABASE_FILE, Store, integrity, meta};

/// What a restore did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    /// Of all generations from now on.
    pub epoch: u64,
    /// The database that was there before, if one was.
    pub kept: Option<PathBuf>,
}

/// Writes a backup to `target`, 0600. The control plane may run.
///
/// # Errors
/// When `target` exists, the database cannot be read, or the copy is not whole.
pub async fn backup(config: &Config, target: &Path) -> anyhow::Result<()> {
    refuse_shared(config, "back it up with pg_dump --format=custom")?;
    ensure!(!target.exists(), "{} exists; a backup never replaces a file", target.display());
    let database = config.data.join(DATABASE_FILE);
    ensure!(
        database.exists(),
        "{} does not exist; is `data` right in the configuration?",
        database.display()
    );
    let folder = folder_of(target);
    // Everything happens in a folder of its own beside the target; it becomes the target in one step, or nothing does.
    let work = tempfile::tempdir_in(&folder).with_context(|| format!("write to {}", folder.display()))?;
    let copy = work.path().join(DATABASE_FILE);
    let store = Store::open(&config.data).await?;
    let copied = store.copy_to(&copy).await;
    store.close().await;
    copied.context("copy the database")?;
    assert_whole(work.path()).await?;
    let packed = work.path().join("packed");
    container::pack(&copy, &packed)?;
    fs::hard_link(&packed, target).with_context(|| format!("write {}", target.display()))?;
    File::open(&folder)?.sync_all()?;
    Ok(())
}

/// Puts a backup in the place of the database. The control plane must not run.
///
/// # Errors
/// When the control plane runs, the file is not a whole backup, or the key-encryption key does not open it; nothing was
/// changed then.
pub async fn restore(config: &Config, source: &Path, clock: &Clock) -> anyhow::Result<Restored> {
    refuse_shared(config, "stop every control plane, then put a dump back with pg_restore")?;
    fs::create_dir_all(&config.data).with_context(|| format!("make {}", config.data.display()))?;
    fs::set_permissions(&config.data, Permissions::from_mode(0o700))?;
    let _lock = DataLock::take(&config.data)?;
    let kek = KeyEncryptionKey::load(config.key_encryption_key_file.as_deref(), &config.data)?;
    let work = tempfile::tempdir_in(&config.data)?;
    let copy = work.path().join(DATABASE_FILE);
    container::unpack(source, &copy).with_context(|| format!("read {}", source.display()))?;
    assert_whole(work.path())
        .await
        .with_context(|| format!("{} is no backup to restore", source.display()))?;

    let present = config.data.join(DATABASE_FILE);
    let present_epoch = if present.exists() { epoch_of(&config.data).await.unwrap_or(0) } else { 0 };
    let epoch = prepare(work.path(), &kek, present_epoch, clock).await?;
    let kept = keep_present(&config.data, clock)?;
    fs::set_permissions(&copy, Permissions::from_mode(0o600))?;
    File::open(&copy)?.sync_all()?;
    fs::rename(&copy, &present).context("put the restored database in its place")?;
    File::open(&config.data)?.sync_all()?;
    Ok(Restored { epoch, kept })
}

/// Opens the copy with the key, which proves that it is the right one, and raises the epoch above both pasts.
async fn prepare(
    folder: &Path,
    kek: &KeyEncryptionKey,
    present_epoch: u64,
    clock: &Clock,
) -> anyhow::Result<u64> {
    let store = Store::open(folder).await?;
    Sealer::load(&store, kek, clock.now_ms()).await.context(
        "this key-encryption key does not open the backup; give the one that was in use when it was taken",
    )?;
    let mut tx = store.begin().await?;
    let past = meta::epoch(&mut tx).await?.max(present_epoch);
    let epoch = meta::raise_epoch(&mut tx, past + 1).await?;
    tx.commit().await?;
    store.close().await;
    Ok(epoch)
}

async fn epoch_of(folder: &Path) -> anyhow::Result<u64> {
    let store = Store::open(folder).await?;
    let epoch = meta::epoch(&mut *store.read().await?).await;
    store.close().await;
    Ok(epoch?)
}

/// Moves the database that is there aside, with its log.
fn keep_present(data: &Path, clock: &Clock) -> anyhow::Result<Option<PathBuf>> {
    let present = data.join(DATABASE_FILE);
    let kept = data.join(format!("{DATABASE_FILE}.before-restore-{}", clock.now_ms()));
    for suffix in ["-wal", "-shm", ""] {
        let (from, to) = (with_suffix(&present, suffix), with_suffix(&kept, suffix));
        if from.exists() {
            fs::rename(&from, &to).with_context(|| format!("move {} aside", from.display()))?;
        }
    }
    Ok(kept.exists().then_some(kept))
}

/// PostgreSQL has its own tools, which know of its roles, its other databases and its log.
fn refuse_shared(config: &Config, instead: &str) -> anyhow::Result<()> {
    ensure!(
        config.database.is_none(),
        "the database is PostgreSQL: {instead}; keep the key-encryption key apart from dumps"
    );
    Ok(())
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

async fn assert_whole(folder: &Path) -> anyhow::Result<()> {
    let store = Store::open(folder).await?;
    let fault = integrity::fault(&store).await;
    store.close().await;
    if let Some(fault) = fault? {
        bail!("the copy is damaged: {fault}");
    }
    Ok(())
}

fn folder_of(path: &Path) -> PathBuf {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::Parts;

    struct Drill {
        folder: tempfile::TempDir,
        config: Config,
    }

    impl Drill {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let text = format!(
                "data = {:?}\napi = \"127.0.0.1:0\"\ndistribution = \"127.0.0.1:0\"\nkey_encryption_key_file = {:?}\n",
                folder.path().join("data"),
                folder.path().join("kek")
            );
            let file = folder.path().join("control-plane.toml");
            fs::write(&file, text).unwrap();
            let config = Config::read(&file).unwrap();
            let drill = Self { folder, config };
            drill.new_key();
            drill
        }

        fn new_key(&self) {
            let file = self.config.key_encryption_key_file.as_ref().unwrap();
            if file.exists() {
                fs::remove_file(file).unwrap();
            }
            KeyEncryptionKey::create(file, &self.config.data).unwrap();
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("backup")
        }

        async fn parts(&self) -> Parts {
            Parts::open(self.config.clone(), Clock::default()).await.unwrap()
        }

        async fn restore(&self) -> anyhow::Result<Restored> {
            restore(&self.config, &self.file(), &Clock::default()).await
        }
    }

    async fn note(parts: &Parts, text: &str) {
        let mut tx = parts.store.begin().await.unwrap();
        meta::put(&mut tx, "note", text).await.unwrap();
        tx.commit().await.unwrap();
    }

    #[tokio::test]
    async fn what_was_acknowledged_before_the_backup_is_back_and_the_epoch_has_risen() {
        let drill = Drill::new();
        let parts = drill.parts().await;
        let sealed = parts.sealer.seal("drill", "row", b"secret");
        note(&parts, &hex::encode(&sealed)).await;
        let before = meta::epoch(&mut parts.store.read().await.unwrap()).await.unwrap();
        // The control plane runs while the backup is taken.
        backup(&drill.config, &drill.file()).await.unwrap();
        assert_eq!(fs::metadata(drill.file()).unwrap().permissions().mode() & 0o777, 0o600);
        note(&parts, "written after the backup").await;
        parts.store.close().await;
        drop(parts);

        let restored = drill.restore().await.unwrap();
        assert!(restored.epoch > before);
        assert!(restored.kept.unwrap().exists());
        let parts = drill.parts().await;
        let note = meta::find(&mut parts.store.read().await.unwrap(), "note").await.unwrap().unwrap();
        let bytes: Vec<u8> =
            (0..note.len()).step_by(2).map(|at| u8::from_str_radix(&note[at..at + 2], 16).unwrap()).collect();
        assert_eq!(parts.sealer.open("drill", "row", &bytes).unwrap().as_slice(), b"secret");
    }

    #[tokio::test]
    async fn a_backup_holds_no_key_encryption_key_and_replaces_no_file() {
        let drill = Drill::new();
        drill.parts().await.store.close().await;
        backup(&drill.config, &drill.file()).await.unwrap();
        let kek = fs::read(drill.config.key_encryption_key_file.as_ref().unwrap()).unwrap();
        let kek = kek.trim_ascii();
        let content = fs::read(drill.file()).unwrap();
        assert!(kek.len() >= 32 && !content.windows(kek.len()).any(|window| window == kek));
        let error = backup(&drill.config, &drill.file()).await.unwrap_err();
        assert!(error.to_string().contains("exists"), "{error:#}");
    }

    #[tokio::test]
    async fn a_restore_that_cannot_succeed_changes_nothing() {
        let drill = Drill::new();
        let parts = drill.parts().await;
        note(&parts, "present").await;
        backup(&drill.config, &drill.file()).await.unwrap();
        let error = drill.restore().await.unwrap_err();
        assert!(format!("{error:#}").contains("in use"), "a running control plane: {error:#}");
        parts.store.close().await;
        drop(parts);

        let whole = fs::read(drill.file()).unwrap();
        fs::write(drill.file(), &whole[..whole.len() / 2]).unwrap();
        drill.restore().await.unwrap_err();
        fs::write(drill.file(), b"no database at all").unwrap();
        drill.restore().await.unwrap_err();
        fs::write(drill.file(), &whole).unwrap();
        let key_file = drill.config.key_encryption_key_file.clone().unwrap();
        let key = fs::read(&key_file).unwrap();
        drill.new_key();
        let error = drill.restore().await.unwrap_err();
        assert!(format!("{error:#}").contains("key-encryption key"), "{error:#}");
        fs::write(&key_file, key).unwrap();

        let parts = drill.parts().await;
        let note = meta::find(&mut parts.store.read().await.unwrap(), "note").await.unwrap();
        assert_eq!(note.as_deref(), Some("present"));
        let names = fs::read_dir(&drill.config.data).unwrap().map(|entry| entry.unwrap().file_name());
        assert!(!names.into_iter().any(|name| name.to_string_lossy().contains("before-restore")));
    }
}
