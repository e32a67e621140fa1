//! The cell's data keys, kept on disk as they came: sealed to this edge by HPKE, one file for each epoch.

use std::path::{Path, PathBuf};

use portico_api::distribution::SealedCellKey;
use portico_cert_store::{CellKeys, hpke};
use prost::Message as _;

use super::files::{self, FileError};
use super::identity::Identity;
use super::limits;
use crate::live::Fault;

/// A folder of sealed keys, `<epoch>.key`.
#[derive(Debug)]
pub(super) struct CellKeyFiles {
    folder: PathBuf,
}

impl CellKeyFiles {
    pub(super) fn open(folder: &Path) -> Result<Self, FileError> {
        files::private_folder(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Opens every key there is. A key that does not open is named and left; its epoch's credentials cannot serve until
    /// the control plane sends it again.
    pub(super) fn load(&self, identity: &Identity, keys: &CellKeys) -> Result<Vec<String>, FileError> {
        let mut warnings = Vec::new();
        for epoch in self.epochs()? {
            let path = self.path(epoch);
            let sealed = match files::read_private(&path, limits::CELL_KEY_FILE_BYTES_MAX) {
                Ok(sealed) => sealed.unwrap_or_default(),
                // Wide modes are refused at start, like those of the identity; damage is not a reason to stay down.
                Err(error @ FileError::Mode { .. }) => return Err(error),
                Err(error) => {
                    warnings.push(error.to_string());
                    continue;
                }
            };
            let opened = SealedCellKey::decode(sealed.as_slice())
                .map_err(|error| error.to_string())
                .and_then(|sealed| open(&sealed, identity, keys).map_err(|fault| fault.text));
            if let Err(reason) = opened {
                warnings.push(format!("{}: {reason}", path.display()));
            }
        }
        Ok(warnings)
    }

    /// Opens a key that came, and keeps it as it came.
    pub(super) fn receive(
        &self,
        sealed: &SealedCellKey,
        identity: &Identity,
        keys: &CellKeys,
    ) -> Result<(), Fault> {
        open(sealed, identity, keys)?;
        let kept = |error: FileError| Fault::new("NotStored", error.to_string());
        files::write_private(&self.path(sealed.epoch), &sealed.encode_to_vec()).map_err(kept)?;
        self.forget_old().map_err(kept)
    }

    fn forget_old(&self) -> Result<(), FileError> {
        let mut epochs = self.epochs()?;
        epochs.sort_unstable();
        let excess = epochs.len().saturating_sub(limits::CELL_KEY_EPOCHS_MAX);
        for epoch in epochs.into_iter().take(excess) {
            files::remove(&self.path(epoch))?;
        }
        Ok(())
    }

    fn epochs(&self) -> Result<Vec<u32>, FileError> {
        let names = files::names(&self.folder)?;
        Ok(names.iter().filter_map(|name| name.strip_suffix(".key")?.parse().ok()).collect())
    }

    fn path(&self, epoch: u32) -> PathBuf {
        self.folder.join(format!("{epoch}.key"))
    }
}

fn open(sealed: &SealedCellKey, identity: &Identity, keys: &CellKeys) -> Result<(), Fault> {
    if sealed.cell_id != identity.cell.as_str() {
        return Err(Fault::new("OtherCell", format!("a key of cell `{:.32}`", sealed.cell_id)));
    }
    let key = hpke::open_cell_key(
        &identity.hpke_private,
        identity.cell.clone(),
        sealed.epoch,
        &sealed.encapsulated_key,
        &sealed.ciphertext,
    )
    .map_err(|error| Fault::new("CellKeyDoesNotOpen", format!("epoch {}: {error}", sealed.epoch)))?;
    keys.add(key);
    Ok(())
}

#[cfg(test)]
mod tests;
