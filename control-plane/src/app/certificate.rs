//! Certificates as the API shows them.

use portico_api::v1::{
    BackupState, Certificate, CertificateState, CertificateSummary, RenewalSource, RenewalSuggestion,
};
use portico_cert_store::{CertificateChain, DomainId, KeyType};

use crate::clock::rfc3339;
use crate::store::backup::Backup;
use crate::store::issuance::CertificateRow;

pub(crate) fn summary(row: &CertificateRow) -> CertificateSummary {
    CertificateSummary {
        credential_id: row.id,
        lineage_id: row.lineage,
        group_id: row.group,
        cell: row.cell.clone(),
        issuer: row.issuer.clone(),
        custody: row.custody,
        backup: row.backup.map(|backup| match backup {
            Backup::Staged => BackupState::Staged,
            Backup::Shown => BackupState::Shown,
        }),
        adopted: row.adopted,
        key_type: key_type(row),
        not_before: rfc3339(row.not_before),
        not_after: rfc3339(row.not_after),
        renew_at: rfc3339(row.renew_at),
        renewal: row.custody.is_ours().then(|| RenewalSuggestion {
            source: if row.window.is_some() { RenewalSource::Ari } else { RenewalSource::Share },
            window_start: row.window.map(|window| rfc3339(window.start)),
            window_end: row.window.map(|window| rfc3339(window.end)),
            explanation_url: row.explanation_url.clone(),
            asked_at: row.window_asked_at.map(rfc3339),
            note: row.window_note.clone(),
        }),
        names: row.names.clone(),
        fingerprint_sha256: hex::encode(&row.fingerprint_sha256),
        spki_sha256: hex::encode(&row.spki_sha256),
    }
}

/// `None` for a chain that this release cannot read.
pub(crate) fn key_type(row: &CertificateRow) -> Option<KeyType> {
    CertificateChain::parse_pem(row.chain_pem.as_bytes()).ok().map(|chain| chain.facts().key_type)
}

pub(crate) fn certificate(row: &CertificateRow, domain_ids: Vec<DomainId>, now_ms: i64) -> Certificate {
    let state = if row.not_after <= now_ms {
        CertificateState::Expired
    } else if row.live {
        CertificateState::Live
    } else {
        CertificateState::Replaced
    };
    Certificate { summary: summary(row), state, chain_pem: row.chain_pem.clone(), domain_ids }
}
