//! The unix sockets of an edge: each path belongs to one process at a time.

use std::{
    io,
    net::TcpListener,
    os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
};

use anyhow::Context;

use super::socket_of;

/// What is bound beside the listeners.
#[derive(Debug)]
pub struct Surfaces {
    pub admin: OwnSocket,
    /// Absent where it could not be bound: then this edge cannot hand over.
    pub hand_over: Option<OwnSocket>,
    pub metrics: Option<TcpListener>,
}

/// A listening unix socket and its path.
#[derive(Debug)]
pub struct OwnSocket {
    pub listener: UnixListener,
    path: PathBuf,
    /// Where it was bound until the predecessor's place is free.
    aside: Option<PathBuf>,
    /// A later process may have its own socket at the path.
    inode: u64,
}

impl Surfaces {
    /// Binds all of them. A process that takes over gets the paths with [`Surfaces::publish`].
    ///
    /// # Errors
    /// When the admin socket cannot be bound; the text says why.
    pub fn bind(admin: &Path, metrics: Option<TcpListener>, takes_over: bool) -> anyhow::Result<Self> {
        let socket = OwnSocket::bind(admin, takes_over);
        let admin_socket = socket.with_context(|| format!("admin socket {}", admin.display()))?;
        let path = socket_of(admin);
        let hand_over = OwnSocket::bind(&path, takes_over);
        if let Err(error) = &hand_over {
            tracing::warn!(%error, path = %path.display(), "this edge will not be able to hand over to a successor");
        }
        Ok(Self { admin: admin_socket, hand_over: hand_over.ok(), metrics })
    }

    /// Takes the paths.
    ///
    /// # Errors
    /// As rename(2).
    pub fn publish(&mut self) -> io::Result<()> {
        self.admin.publish()?;
        self.hand_over.as_mut().map_or(Ok(()), OwnSocket::publish)
    }
}

impl OwnSocket {
    /// The folder is made private, a dead socket is removed, the new one is for this user alone.
    fn bind(path: &Path, takes_over: bool) -> io::Result<Self> {
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        }
        let aside = takes_over.then(|| {
            let mut aside = path.as_os_str().to_owned();
            aside.push(".new");
            PathBuf::from(aside)
        });
        let at = aside.as_deref().unwrap_or(path);
        if !takes_over && UnixStream::connect(path).is_ok() {
            let text =
                "another edge answers there; set another admin_socket, or take its place with --take-over";
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        let _ = std::fs::remove_file(at);
        let listener = UnixListener::bind(at)?;
        listener.set_nonblocking(true)?;
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o600))?;
        let inode = std::fs::metadata(at)?.ino();
        Ok(Self { listener, path: path.to_owned(), aside, inode })
    }

    fn publish(&mut self) -> io::Result<()> {
        match &self.aside {
            Some(aside) => std::fs::rename(aside, &self.path)?,
            None => return Ok(()),
        }
        self.aside = None;
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Leaves no dead socket behind, and never removes another process's.
impl Drop for OwnSocket {
    fn drop(&mut self) {
        let at = self.aside.as_deref().unwrap_or(&self.path);
        if std::fs::metadata(at).is_ok_and(|metadata| metadata.ino() == self.inode) {
            let _ = std::fs::remove_file(at);
        }
    }
}
