//! A file with which a tenant proves control of a name counts only where somebody else serves it. The control plane asks no
//! address of ours for it; where a server in between passes its request on to us, that request says by `CDN-Loop` (RFC
//! 8586) whose it is, and no route of a tenant may answer it.

use http::request::Parts;

use crate::http::forwarding;

/// As the control plane asks for it.
const PREFIX: &str = "/.well-known/portico/";

/// A request for such a file that our control plane sent and that has found its way here.
pub(super) fn comes_through_us(parts: &Parts) -> bool {
    parts.uri.path().starts_with(PREFIX) && forwarding::times_through_us(&parts.headers) > 0
}
