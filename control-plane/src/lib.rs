//! control-plane
pub mod acme;
