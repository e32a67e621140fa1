//! Small files that hold secrets: written aside, synced, renamed; 0600 in folders of 0700; wider modes are refused.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error(
        "{path} can be read by others (mode {mode:o}): run `chmod {wanted:o} {path}`, and if others may have read it, remove this edge and join again"
    )]
    Mode { path: PathBuf, mode: u32, wanted: u32 },
    #[error("cannot {action} {path}")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is damaged")]
    Damaged { path: PathBuf },
    #[error("{path} has {bytes} bytes; at most {bytes_max} are read")]
    TooLarge { path: PathBuf, bytes: u64, bytes_max: u64 },
}

/// Makes a folder that only its owner can enter, or checks that it is one.
pub(super) fn private_folder(path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "create the folder", path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
    check_mode(path, 0o700)
}

/// The bytes of a private file; None if there is none.
pub(super) fn read_private(path: &Path, bytes_max: u64) -> Result<Option<Zeroizing<Vec<u8>>>, FileError> {
    let failed = |source| FileError::Io { action: "read", path: path.to_owned(), source };
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    check_mode(path, 0o600)?;
    let bytes = file.metadata().map_err(failed)?.len();
    if bytes > bytes_max {
        return Err(FileError::TooLarge { path: path.to_owned(), bytes, bytes_max });
    }
    let mut content = Zeroizing::new(Vec::with_capacity(usize::try_from(bytes).unwrap_or(0)));
    file.read_to_end(&mut content).map_err(failed)?;
    Ok(Some(content))
}

/// Replaces a private file; after a crash it is the old one or the new one.
pub(super) fn write_private(path: &Path, content: &[u8]) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "write", path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let aside = path.with_extension("new");
    // A remnant of a crash may have any mode.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside).map_err(failed)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&aside, path).map_err(failed)?;
    sync_folder(folder)
}

/// The names of what is in a folder, as far as they are text.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, FileError> {
    let failed = |source| FileError::Io { action: "list", path: folder.to_owned(), source };
    let entries = fs::read_dir(folder).map_err(failed)?;
    let names =
        entries.map(|entry| Ok(entry?.file_name().into_string().ok())).collect::<io::Result<Vec<_>>>();
    Ok(names.map_err(failed)?.into_iter().flatten().collect())
}

/// Removes a file for good; one that is not there is removed.
pub(super) fn remove(path: &Path) -> Result<(), FileError> {
    unlink(path)?;
    sync_folder(path.parent().unwrap_or(Path::new(".")))
}

/// Removes a file, for good once its folder is synced; one that is not there is removed.
pub(super) fn unlink(path: &Path) -> Result<(), FileError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FileError::Io { action: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

pub(super) fn sync_folder(path: &Path) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "sync the folder", path: path.to_owned(), source };
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn check_mode(path: &Path, wanted: u32) -> Result<(), FileError> {
    let failed = |source| FileError::Io { action: "look at", path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 == 0 { Ok(()) } else { Err(FileError::Mode { path: path.to_owned(), mode, wanted }) }
}
