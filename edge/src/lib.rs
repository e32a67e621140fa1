//! edge
pub mod clock;
pub mod io;
pub mod limits;
