//! The one folder: who may use it, and how it is made anew.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::failure::{Failure, Outcome};

/// Marks a folder as the quickstart's own, and is locked while one runs in it.
const LOCK: &str = ".quickstart-lock";
/// The operator's API token.
pub(super) const TOKEN: &str = "token";
/// The root that the edges' certificates end in.
pub(super) const ROOT: &str = "root.pem";
/// What clients of the CA's API trust.
pub(super) const CA_API_ROOT: &str = "ca-api-root.pem";

/// A folder that this process alone uses.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    /// Held for as long as the quickstart runs.
    _lock: File,
}

impl Folder {
    /// Makes the folder, or empties one that an earlier quickstart left behind.
    ///
    /// # Errors
    /// When another quickstart runs in it, or when it holds files that are not a quickstart's: those are never deleted.
    pub(super) fn claim(path: &Path) -> Outcome<Self> {
        let path = std::path::absolute(path).map_err(|error| Failure::file(path, error))?;
        let about = |error: std::io::Error| Failure::file(&path, error);
        let lock_path = path.join(LOCK);
        if path.exists() && !lock_path.exists() && std::fs::read_dir(&path).map_err(about)?.next().is_some() {
            return Err(Failure::failed(format!(
                "{} holds files that are not the quickstart's",
                path.display()
            ))
            .next(super::again(&[("--dir", "ANOTHER_FOLDER".to_owned())])));
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(about)?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o700)).map_err(about)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(about)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Failure::failed(format!("a quickstart is running in {} already", path.display())).next(format!(
                "{}   (and other ports), or end the running one with Ctrl-C",
                super::again(&[("--dir", "ANOTHER_FOLDER".to_owned())])
            ))
        })?;
        empty(&path).map_err(about)?;
        std::fs::create_dir(path.join("logs")).map_err(about)?;
        Ok(Self { path, _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a file of this folder, 0600.
    pub(super) fn write(&self, name: &str, text: &str) -> Outcome {
        let path = self.file(name);
        let written = (|| {
            if let Some(parent) = path.parent() {
                DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
            }
            let mut file =
                OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&path)?;
            file.write_all(text.as_bytes())
        })();
        written.map_err(|error| Failure::file(&path, error))
    }
}

/// Removes all but the lock.
fn empty(path: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_name() == LOCK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_run_starts_fresh_and_a_running_one_is_left_alone() {
        let base = tempfile::tempdir().unwrap();
        let path = base.path().join("q");
        let folder = Folder::claim(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        folder.write("edge-1/edge.toml", "x").unwrap();
        let failure = Folder::claim(&path).unwrap_err();
        assert!(failure.text.contains("already"), "{}", failure.text);
        drop(folder);
        let folder = Folder::claim(&path).unwrap();
        assert!(!folder.file("edge-1").exists());
    }

    #[test]
    fn files_of_others_are_never_deleted() {
        let base = tempfile::tempdir().unwrap();
        std::fs::write(base.path().join("thesis.txt"), "years of work").unwrap();
        let failure = Folder::claim(base.path()).unwrap_err();
        assert!(failure.text.contains("not the quickstart's"), "{}", failure.text);
        assert!(base.path().join("thesis.txt").exists());
    }
}
