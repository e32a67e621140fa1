//! The file of a backup: magic, the length and JSON of a manifest, then the database's bytes. The manifest's SHA-256
//! finds flipped bytes that SQLite's own check of the structure does not see.

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, ensure};
use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

const MAGIC: &[u8; 16] = b"portico-backup-1";
const MANIFEST_BYTES_MAX: u32 = 64 * 1024;

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// The release that wrote it.
    build: String,
    database_bytes: u64,
    /// Lower-case hex.
    database_sha256: String,
}

/// Writes the backup `target`, 0600, around a database file.
pub(super) fn pack(database: &Path, target: &Path) -> anyhow::Result<()> {
    let manifest = Manifest {
        build: env!("CARGO_PKG_VERSION").to_owned(),
        database_bytes: fs::metadata(database)?.len(),
        database_sha256: sha256(database)?,
    };
    let text = serde_json::to_vec(&manifest)?;
    let mut out = create(target)?;
    out.write_all(MAGIC)?;
    out.write_all(&u32::try_from(text.len())?.to_be_bytes())?;
    out.write_all(&text)?;
    io::copy(&mut File::open(database)?, &mut out)?;
    Ok(out.sync_all()?)
}

/// Writes the database of the backup `source` to `target`, 0600, once it is known to be whole.
pub(super) fn unpack(source: &Path, target: &Path) -> anyhow::Result<()> {
    let mut input = BufReader::new(File::open(source)?);
    let mut magic = [0; MAGIC.len()];
    input.read_exact(&mut magic).context("it is too short to be a backup")?;
    ensure!(&magic == MAGIC, "it is no backup, or one of another release");
    let mut length = [0; 4];
    input.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    ensure!(length <= MANIFEST_BYTES_MAX, "its manifest is damaged");
    let mut text = vec![0; length as usize];
    input.read_exact(&mut text)?;
    let manifest: Manifest = serde_json::from_slice(&text).context("its manifest is damaged")?;
    let mut out = create(target)?;
    let bytes = io::copy(&mut input, &mut out)?;
    out.sync_all()?;
    ensure!(
        bytes == manifest.database_bytes && sha256(target)? == manifest.database_sha256,
        "it is damaged: its contents are not those that its manifest names"
    );
    Ok(())
}

fn create(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut input = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match input.read(&mut buffer)? {
            0 => return Ok(hex::encode(context.finish().as_ref())),
            length => context.update(&buffer[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_byte_and_any_cut_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let (database, backup) = (folder.path().join("db"), folder.path().join("backup"));
        fs::write(&database, "contents ".repeat(20)).unwrap();
        pack(&database, &backup).unwrap();
        let whole = fs::read(&backup).unwrap();
        let target = folder.path().join("out");
        unpack(&backup, &target).unwrap();
        assert_eq!(fs::read(&target).unwrap(), fs::read(&database).unwrap());
        let manifest = whole.windows(5).position(|window| window == b"\"0.1.").unwrap();
        // The release's number is a remark; everything else is checked.
        for at in (0..whole.len()).filter(|at| !(manifest..manifest + 8).contains(at)) {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            fs::write(&backup, damaged).unwrap();
            fs::remove_file(&target).ok();
            assert!(unpack(&backup, &target).is_err(), "byte {at}");
            fs::write(&backup, &whole[..at]).unwrap();
            fs::remove_file(&target).ok();
            assert!(unpack(&backup, &target).is_err(), "cut at {at}");
        }
    }
}
