//! The operator's commands as a user runs them: the shipped binary against a control plane on a real socket.

#![expect(clippy::unwrap_used, reason = "set-up fails the test")]

mod custody;
mod domains;
mod json_output;
mod plane;
mod services;
mod tokens;
mod trail;
mod whose;
