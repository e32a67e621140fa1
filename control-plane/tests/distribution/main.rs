//! Distribution over real sockets: the control plane in this process, edges made of the generated client.

mod edge;
mod joining;
mod plane;
mod scale;
mod syncing;
mod urgent;
