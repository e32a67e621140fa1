//! The operator's commands, one file each.

pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod budget;
pub(crate) mod cache;
pub(crate) mod cert;
pub(crate) mod check;
pub(crate) mod domain;
pub(crate) mod edge;
pub(crate) mod error_pages;
pub(crate) mod import;
pub(crate) mod issuer;
pub(crate) mod named_domain;
pub(crate) mod plan;
pub(crate) mod policy;
pub(crate) mod preview;
pub(crate) mod rekey;
pub(crate) mod removal;
pub(crate) mod renewals;
pub(crate) mod route;
pub(crate) mod rule;
pub(crate) mod shadow;
pub(crate) mod suspension;
pub(crate) mod tenant;
pub(crate) mod tenant_limits;
pub(crate) mod token;
pub(crate) mod usage;
