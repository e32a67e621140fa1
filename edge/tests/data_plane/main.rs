//! What the data plane promises, over real sockets, on io_uring and on epoll.

#[path = "../fleet/mod.rs"]
mod fleet;

mod authority;
mod client;
mod drain;
mod egress;
mod exchange;
mod handshake;
mod harness;
mod limits;
mod origin;
mod process;
mod proxy;
mod smuggling;
mod suspension;
