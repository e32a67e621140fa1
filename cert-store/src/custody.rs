//! Where a private key comes from.

use serde::{Deserialize, Serialize};

/// Whose a private key is: it decides who renews its certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Custody {
    /// Made by the control plane for one cell; a new key with each renewal.
    #[default]
    Cell,
    /// Brought by a tenant with its certificate. Only the tenant renews it, and it is shown before an issued one.
    Uploaded,
}

impl Custody {
    /// As it is stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cell => "cell",
            Self::Uploaded => "uploaded",
        }
    }
}

impl std::str::FromStr for Custody {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Cell, Self::Uploaded].into_iter().find(|custody| custody.as_str() == text).ok_or(())
    }
}
