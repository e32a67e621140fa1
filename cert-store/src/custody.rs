//! Where a private key comes from.

use serde::{Deserialize, Serialize};

/// Whose a private key is: it decides who renews its certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Custody {
    /// Made by the control plane for one cell; a new key with each renewal.
    #[default]
    Cell,
    /// Made by the one edge of a cell and never anywhere else; a new key with each renewal.
    Edge,
    /// Brought by a tenant with its certificate. Only the tenant renews it, and it is shown before an issued one.
    Uploaded,
}

impl Custody {
    /// The word for it, as in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cell => "cell",
            Self::Edge => "edge",
            Self::Uploaded => "uploaded",
        }
    }

    /// Its certificate was issued to us, and is renewed here.
    pub fn is_ours(self) -> bool {
        match self {
            Self::Cell | Self::Edge => true,
            Self::Uploaded => false,
        }
    }
}

impl std::str::FromStr for Custody {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Cell, Self::Edge, Self::Uploaded]
            .into_iter()
            .find(|custody| custody.as_str() == text)
            .ok_or(())
    }
}
