//! A state folder as a joined edge has it, so that one starts without a control plane: its identity, the cell's key and the
//! last good snapshot.

use std::fs::{DirBuilder, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use portico_api::distribution as wire;
use portico_cert_store::{
    CellId, CellKey, CredentialId, EdgeId, Generation, GroupId, KeyType, LastGood, PrivateKey, SealContext,
    hpke,
};
use prost::Message as _;
use rcgen::{CertificateParams, KeyPair};

/// A folder that is being filled.
pub(crate) struct FleetState {
    folder: PathBuf,
    cell_key: CellKey,
    frames: Vec<Vec<u8>>,
}

impl FleetState {
    /// Makes `folder` with a new identity and cell key in it.
    pub(crate) fn create(folder: &Path) -> Result<Self> {
        let cell_key = CellKey::generate(CellId::parse("cell-a")?, 1);
        private_folder(folder)?;
        write_identity(folder, &cell_key)?;
        Ok(Self { folder: folder.to_owned(), cell_key, frames: Vec::new() })
    }

    pub(crate) fn cell(&self) -> &CellId {
        self.cell_key.cell()
    }

    /// Adds a resource to the snapshot.
    pub(crate) fn put(
        &mut self,
        kind: wire::ResourceKind,
        id: String,
        tenant: &str,
        body: &impl prost::Message,
    ) {
        let body = body.encode_to_vec().into();
        let resource =
            wire::Resource { kind: kind as u32, id, version: 1, tenant_id: tenant.to_owned(), body };
        self.frames.push(resource.encode_to_vec());
    }

    /// Adds a certificate, its key sealed to the cell; `chain` is leaf first.
    pub(crate) fn put_credential(
        &mut self,
        lineage: String,
        tenant: &str,
        chain: Vec<Vec<u8>>,
        key: &PrivateKey,
    ) -> Result<()> {
        let (credential, spki_sha256) = (CredentialId::generate(), key.spki_sha256());
        let context =
            SealContext { cell: self.cell_key.cell(), epoch: 1, key_tenant: tenant, credential, spki_sha256 };
        let body = wire::Credential {
            credential_id: credential.to_string(),
            group_id: GroupId::generate().to_string(),
            cell_id: self.cell_key.cell().to_string(),
            chain_der: chain.into_iter().map(Into::into).collect(),
            sealed_key: self.cell_key.seal(key, &context)?.as_bytes().to_vec().into(),
            cell_key_epoch: 1,
            spki_sha256: spki_sha256.to_vec().into(),
            key_tenant: tenant.to_owned(),
            uploaded: false,
            goes_first: false,
            edge_cell_id: String::new(),
        };
        self.put(wire::ResourceKind::Credential, lineage, tenant, &body);
        Ok(())
    }

    /// Writes the snapshot.
    pub(crate) fn finish(self) -> Result<()> {
        let mut last_good = LastGood::open(self.folder.join("last-good"))?;
        last_good.write_snapshot(Generation::new(1, 1), &self.frames)?;
        Ok(())
    }
}

/// What a join leaves behind: an identity that its own certificate stands for, and the cell's key sealed to it.
fn write_identity(state: &Path, cell_key: &CellKey) -> Result<()> {
    let key = PrivateKey::generate(KeyType::EcdsaP256)?;
    let pair = KeyPair::try_from(key.secret_der())?;
    let certificate = STANDARD.encode(CertificateParams::new(Vec::new())?.self_signed(&pair)?.der());
    let (private, public) = hpke::generate_key_pair()?;
    let identity = serde_json::json!({
        "format": 1,
        "edge_id": EdgeId::generate().to_string(),
        "cell_id": cell_key.cell().as_str(),
        "key_pkcs8": STANDARD.encode(key.secret_der()),
        "certificate_chain": [certificate],
        "trusted": [certificate],
        "hpke_private": STANDARD.encode(private.secret_bytes()),
        "hpke_public": STANDARD.encode(public),
    });
    let (encapsulated_key, ciphertext) = hpke::seal_cell_key(&public, cell_key)?;
    let sealed = wire::SealedCellKey {
        cell_id: cell_key.cell().to_string(),
        epoch: cell_key.epoch(),
        encapsulated_key: encapsulated_key.into(),
        ciphertext: ciphertext.into(),
    };
    private_folder(&state.join("identity"))?;
    private_folder(&state.join("cell-keys"))?;
    write_private(&state.join("identity/identity.json"), identity.to_string().as_bytes())?;
    write_private(&state.join("cell-keys/1.key"), &sealed.encode_to_vec())
}

fn private_folder(path: &Path) -> Result<()> {
    DirBuilder::new().mode(0o700).create(path).with_context(|| format!("make {}", path.display()))
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(bytes)?;
    Ok(())
}
