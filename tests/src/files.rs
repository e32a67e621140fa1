//! Looking for bytes in what processes have written.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Every file below `folder`.
///
/// # Errors
/// A folder that cannot be listed.
pub fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                open.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Whether any file below `folder` holds `needle`.
///
/// # Errors
/// A folder or a file that cannot be read; a file may have gone since it was listed.
pub fn holds(folder: &Path, needle: &[u8]) -> io::Result<bool> {
    for file in files(folder)? {
        match fs::read(file) {
            Ok(bytes) if bytes.windows(needle.len()).any(|window| window == needle) => return Ok(true),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
    Ok(false)
}
