//! Sockets, on io_uring where the kernel lets us and on epoll where it does not.
//!
//! The only module that names `tokio_uring` and `io_uring`, and the only one with `unsafe`. Above it, a [`Stream`] is an
//! ordinary `AsyncRead + AsyncWrite` and nobody knows which backend moves its bytes.
//!
//! On io_uring each operation is first tried without blocking (`recv`, `send`, `accept`); only when the kernel says "would
//! block" does a one-shot POLL_ADD go through the ring. So no buffer is ever owned by the kernel, an idle connection pins
//! none, and dropping a future can lose no bytes.
//!
//! Deliberately absent: fixed buffers, multishot operations and zero-copy sends (tokio-uring cannot carry an operation
//! with more than one completion), and DEFER_TASKRUN (its ring descriptor never becomes readable, so the runtime hangs).
#![expect(
    unsafe_code,
    reason = "uninitialised read buffers, raw ring operations, inherited descriptors, allocators' controls; nowhere else in the workspace"
)]

mod activation;
mod allocator;
mod backend;
mod connect;
mod counts;
#[cfg(feature = "heap-profile")]
pub(crate) mod jemalloc;
mod listener;
mod reuseport_bpf;
mod ring;
mod stream;

pub use activation::sockets_of_the_service_manager;
pub(crate) use allocator::return_free_memory;
pub use backend::{Backend, IoChoice, Refused, Runtime, choose, probe};
pub use connect::connect;
pub use counts::{OperationCounts, operation_counts, publish_counts};
pub use listener::{Listener, bind, bound_elsewhere};
pub use reuseport_bpf::steer_by_connection_id;
pub use stream::{SocketWatch, Stream};
