//! What the control plane asks of the operating system for itself.

use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};

/// Open files below which the start warns: 4,096 edges, strangers at both ports, the API, the database, what goes out to CAs,
/// name servers and webhooks.
const DESCRIPTORS_WANTED: u64 = 8_192;

/// Keys never reach a core file, and no other process of this user may read our memory (promise P10). The control plane
/// opens every key of a `Cell`, the accounts' and its own authority's.
pub(crate) fn forbid_dumps() {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    if let Err(error) = setrlimit(Resource::Core, none) {
        tracing::warn!(%error, "core dumps could not be switched off");
    }
    if let Err(error) = set_dumpable_behavior(DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "the process stays dumpable");
    }
}

/// Raises the soft limit of descriptors to the hard one: each edge and each stranger at a port takes one.
pub(crate) fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the descriptor limit could not be raised");
    }
    // `None`: no limit at all.
    if let Some(files) = getrlimit(Resource::Nofile).current.filter(|files| *files < DESCRIPTORS_WANTED) {
        tracing::warn!(
            files,
            wanted = DESCRIPTORS_WANTED,
            "few files may be open at once, and connections are refused beyond; raise LimitNOFILE of the service"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_of_descriptors_is_raised_to_the_hard_one() {
        raise_descriptor_limit();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }
}
