//! Issuance for a whole fleet on a virtual clock.
//!
//! Tenants, their DNS, a CA with its limits, the control plane's plan and ledger, and edges are state machines that one
//! queue of events moves: 90 days of 100,000 names take minutes, and a seed replays them. The plan, the ledger and the
//! times of renewals are the product's own functions; the CA, DNS and the edges are models that share nothing with it.
//!
//! - [`population`]: who brings which names, and what becomes of their DNS.
//! - [`ca`]: limits, orders, windows, an outage, a revocation.
//! - [`control`]: facts, orders, ledger.
//! - [`edges`]: what visitors get.
//! - [`simulation`]: the events.
//! - [`report`]: what came of it, and whether it is as promised.
//!
//! Deliberately absent: bytes, keys, sockets, the database and its crashes. The suites over sockets hold those.

pub mod ca;
pub mod control;
pub mod edges;
pub mod plot;
pub mod population;
pub mod report;
pub mod simulation;
pub mod time;

pub use report::{Outcome, Violation};
pub use simulation::{Scenario, Start, run};
