//! The laboratory of the whole-system tests: real processes on loopback addresses of their own.
//!
//! Each [`Lab`] takes a block of 127.0.0.0/8 for itself, so that labs run side by side although every edge listens on the
//! same two ports (a CA validates all of them at one port). Processes are the shipped binaries; they end by pid when the
//! lab is dropped. Deliberately absent: fakes inside the product, and sleeping: every wait has a condition and a deadline.

#![expect(clippy::disallowed_methods, reason = "deadlines of real processes run on real time")]

mod addresses;
mod files;
mod lab;
mod pebble;
mod process;
mod tls;

pub use addresses::Addresses;
pub use files::{files, holds};
pub use lab::{CaKind, CellPlan, Lab, LabOptions, ca_stats_at, plain_http};
pub use pebble::pebble_is_installed;
pub use process::{Running, binary, wait_until};
pub use tls::{Answer, Shown, ask, shown};
