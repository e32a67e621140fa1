//! Messages and descriptors on the hand-over socket: a length of four bytes and JSON; behind an offer, bytes that each
//! carry some descriptors (unix(7), SCM_RIGHTS).

use std::{
    io::{self, IoSlice, IoSliceMut, Read, Write},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    os::unix::net::UnixStream,
    time::Duration,
};

use rustix::{
    cmsg_space,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags, recvmsg, sendmsg,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};

use crate::limits;

/// Descriptors with one byte; the kernel takes at most 253.
const AT_ONCE: usize = 64;

pub(super) fn read<T: DeserializeOwned>(stream: &mut UnixStream, within: Duration) -> io::Result<T> {
    stream.set_read_timeout(Some(within))?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut text = vec![0; checked(length)?];
    stream.read_exact(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

pub(super) fn write<T: Serialize>(stream: &mut UnixStream, message: &T) -> io::Result<()> {
    stream.set_write_timeout(Some(limits::TAKE_OVER_STEP_DEADLINE))?;
    stream.write_all(&framed(message)?)
}

pub(super) async fn read_async<T: DeserializeOwned>(
    stream: &mut tokio::net::UnixStream,
    within: Duration,
) -> io::Result<T> {
    tokio::time::timeout(within, async {
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        let mut text = vec![0; checked(length)?];
        stream.read_exact(&mut text).await?;
        Ok(serde_json::from_slice(&text)?)
    })
    .await?
}

pub(super) async fn write_async<T: Serialize>(
    stream: &mut tokio::net::UnixStream,
    message: &T,
) -> io::Result<()> {
    let text = framed(message)?;
    tokio::time::timeout(limits::TAKE_OVER_STEP_DEADLINE, stream.write_all(&text)).await?
}

pub(super) async fn send_descriptors(
    stream: &tokio::net::UnixStream,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    for some in descriptors.chunks(AT_ONCE) {
        let sending = stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_ONCE))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            ancillary.push(SendAncillaryMessage::ScmRights(some));
            sendmsg(
                stream,
                &[IoSlice::new(&[0])],
                &mut ancillary,
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            )?;
            Ok(())
        });
        tokio::time::timeout(limits::TAKE_OVER_STEP_DEADLINE, sending).await??;
    }
    Ok(())
}

/// Takes exactly `count`.
pub(super) fn receive_descriptors(stream: &UnixStream, count: usize) -> io::Result<Vec<OwnedFd>> {
    if count > limits::TAKE_OVER_DESCRIPTORS_MAX {
        return Err(invalid("an offer of too many descriptors"));
    }
    let mut descriptors = Vec::with_capacity(count);
    while descriptors.len() < count {
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(AT_ONCE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let parts = &mut [IoSliceMut::new(&mut byte)];
        let received = recvmsg(stream.as_fd(), parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        let before = descriptors.len();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(some) = message {
                descriptors.extend(some);
            }
        }
        if received.bytes == 0 || descriptors.len() == before {
            return Err(invalid(
                "fewer descriptors than were offered; the limit of open files (ulimit -n) may be too low",
            ));
        }
    }
    Ok(descriptors)
}

fn framed<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec(message)?;
    let length = u32::try_from(text.len()).map_err(|_| invalid("a message is too long"))?;
    Ok([&length.to_be_bytes()[..], &text].concat())
}

fn checked(length: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if length <= limits::TAKE_OVER_MESSAGE_BYTES_MAX {
        Ok(length)
    } else {
        Err(invalid("a message is too long"))
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What only a failure takes.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_message_is_read_up_to_its_bound() {
        let (mut ours, mut theirs) = UnixStream::pair().expect("a pair");
        let text = "x".repeat(limits::TAKE_OVER_MESSAGE_BYTES_MAX - 2); // and two quotes
        let sent = text.clone();
        let sending = std::thread::spawn(move || {
            write(&mut theirs, &sent).expect("somebody reads");
            theirs
        });
        assert_eq!(read::<String>(&mut ours, LONG).expect("the bound itself"), text);
        let mut theirs = sending.join().expect("it was sent");
        // Whoever would read on waits for what never comes.
        let length = u32::try_from(limits::TAKE_OVER_MESSAGE_BYTES_MAX + 1).expect("it fits");
        theirs.write_all(&length.to_be_bytes()).expect("somebody reads");
        let refused = read::<String>(&mut ours, LONG).expect_err("one byte more");
        assert_eq!(refused.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn an_offer_has_so_many_descriptors() {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let refused = receive_descriptors(&ours, limits::TAKE_OVER_DESCRIPTORS_MAX + 1);
        let text = refused.expect_err("one too many").to_string();
        assert!(text.contains("too many descriptors"), "{text}");
        // As many as are allowed are waited for.
        drop(theirs);
        let text =
            receive_descriptors(&ours, limits::TAKE_OVER_DESCRIPTORS_MAX).expect_err("none came").to_string();
        assert!(text.contains("fewer descriptors than were offered"), "{text}");
    }
}
