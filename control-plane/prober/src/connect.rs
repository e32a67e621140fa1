//! The one way to open a connection on a tenant's behalf with tokio: connect to exactly the address that the egress
//! policy was asked about, and ask again about the peer that the socket names.
//!
//! Deliberately absent: name resolution; the caller gives the addresses.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::egress::{EgressPolicy, EgressRefused, Grant};

/// Why [`connect_guarded`] has no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("there is no address to connect to")]
    NoAddress,
    #[error(transparent)]
    Refused(#[from] EgressRefused),
    #[error("cannot connect to {address}")]
    Io { address: SocketAddr, source: io::Error },
    #[error("{address} did not answer within {} ms", within.as_millis())]
    Timeout { address: SocketAddr, within: Duration },
    /// The socket says that its peer is not the address that was checked.
    #[error("connected to {found} instead of {wanted}")]
    OtherPeer { wanted: SocketAddr, found: SocketAddr },
}

/// Connects to the first of `addresses` that the policy allows and that answers; `deadline` holds for each attempt.
///
/// # Errors
/// [`ConnectError::Refused`] when the policy refuses every address; else why the last allowed one failed.
pub async fn connect_guarded(
    addresses: &[SocketAddr],
    policy: &EgressPolicy,
    grants: &[Grant<'_>],
    deadline: Duration,
) -> Result<TcpStream, ConnectError> {
    let (mut refused, mut failed) = (None, None);
    for &address in addresses {
        match connect_one(address, policy, grants, deadline).await {
            Ok(stream) => return Ok(stream),
            Err(error @ ConnectError::Refused(_)) => refused = Some(error),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.or(refused).unwrap_or(ConnectError::NoAddress))
}

async fn connect_one(
    address: SocketAddr,
    policy: &EgressPolicy,
    grants: &[Grant<'_>],
    deadline: Duration,
) -> Result<TcpStream, ConnectError> {
    policy.check(address, grants.iter().copied())?;
    let connected = tokio::time::timeout(deadline, TcpStream::connect(address))
        .await
        .map_err(|_| ConnectError::Timeout { address, within: deadline })?;
    let failed = |source| ConnectError::Io { address, source };
    let stream = connected.map_err(failed)?;
    let found = stream.peer_addr().map_err(failed)?;
    policy.check(found, grants.iter().copied())?;
    if found.ip().to_canonical() != address.ip().to_canonical() || found.port() != address.port() {
        return Err(ConnectError::OtherPeer { wanted: address, found });
    }
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_refused_address_sees_no_connect_and_a_granted_one_is_reached() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (policy, second) = (EgressPolicy::default(), Duration::from_secs(1));

        let refused = connect_guarded(&[address], &policy, &[], second).await;
        assert!(matches!(refused, Err(ConnectError::Refused(EgressRefused::Special { .. }))), "{refused:?}");
        let seen = tokio::time::timeout(Duration::from_millis(50), listener.accept()).await;
        assert!(seen.is_err(), "the listener saw a connect");

        let ports = [address.port()];
        let grants = [Grant { net: "127.0.0.1/32".parse().unwrap(), ports: &ports }];
        let metadata = "169.254.169.254:80".parse().unwrap();
        let stream = connect_guarded(&[metadata, address], &policy, &grants, second).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), address);

        drop((stream, listener));
        let gone = connect_guarded(&[metadata, address], &policy, &grants, second).await;
        assert!(matches!(gone, Err(ConnectError::Io { .. })), "{gone:?}");
        assert!(matches!(connect_guarded(&[], &policy, &[], second).await, Err(ConnectError::NoAddress)));
    }
}
