//! tests/acme-ca
