//! HTTP over a connection: hyper for HTTP/1.1 and HTTP/2, each with explicit limits, both ending at one
//! [`serve_exchange`](crate::exchange::serve_exchange). HTTP/3 ends there too.

pub mod authority;
pub mod body;
pub(crate) mod budget;
pub mod clock;
pub mod drive;
pub(crate) mod extended_connect;
pub mod forwarding;
mod frame_budget;
pub(crate) mod frame_heads;
pub mod framing;
mod gathered_io;
pub(crate) mod goodbye;
pub mod guarded_io;
pub mod h1;
pub mod h2;
pub mod h3;
mod late_pong;
mod leftover;
mod origin_body;
mod pacing;
mod stall;
pub mod trace_context;
pub mod unique;
pub(crate) mod upload;
pub mod visitor;
