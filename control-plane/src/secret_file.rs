//! Files that hold a secret: nobody else may read them, and what was read of them is zeroed when it is let go.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// Why a secret was not read. Never its content.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} has mode {mode:04o}; it must be 0600 or narrower: chmod 600 it", path.display())]
    Mode { path: PathBuf, mode: u32 },
    #[error("{} is no text", path.display())]
    NoText { path: PathBuf },
}

/// # Errors
/// The file cannot be read, or others may.
pub fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, SecretFileError> {
    let failed = |source| SecretFileError::File { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(failed)?;
    // Of what was opened: another may stand there by then.
    let about = file.metadata().map_err(failed)?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(SecretFileError::Mode { path: path.to_owned(), mode });
    }
    // With room for all of it: a buffer that grows leaves copies behind.
    let room = usize::try_from(about.len()).unwrap_or(0) + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(room));
    file.read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

/// The text of the file, with the white space around it.
///
/// # Errors
/// As [`read`]; it is no text.
pub fn read_text(path: &Path) -> Result<Zeroizing<String>, SecretFileError> {
    let bytes = read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| SecretFileError::NoText { path: path.to_owned() })?;
    Ok(Zeroizing::new(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};

    use super::*;

    #[test]
    fn a_secret_that_others_may_read_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let told = || read_text(&path).map(|text| text.to_string()).map_err(|error| error.to_string());
        assert!(told().unwrap_err().contains("No such file"), "{:?}", told());
        fs::write(&path, "swordfish\n").unwrap();
        for (mode, is_good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false), (0o610, false)]
        {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            match told() {
                Ok(text) => assert!(is_good && text == "swordfish\n", "{mode:o}"),
                Err(text) => assert!(!is_good && text.contains("chmod 600"), "{mode:o}: {text}"),
            }
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(told().unwrap_err().ends_with("is no text"));
        assert_eq!(read(&path).unwrap().as_slice(), [0xff, 0xfe]);
    }
}
