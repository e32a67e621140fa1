//! Where lines go: a file that may be moved away under us, a pipe, or standard output.

use std::{
    fs::{File, Metadata, OpenOptions},
    io::{self, ErrorKind, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    time::Instant,
};

use crate::{clock, config::AccessLogTarget, limits};

pub(super) struct Output {
    file: File,
    named: Option<Named>,
}

struct Named {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
    looked: Instant,
    /// Another that stood at the path and was tried without being told.
    tried: Option<(u64, u64)>,
}

impl Output {
    /// `None`: nothing is to be written.
    pub(super) fn open(target: &AccessLogTarget) -> io::Result<Option<Self>> {
        Ok(match target {
            AccessLogTarget::Off => None,
            AccessLogTarget::StandardOutput => {
                let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                Some(Self { file, named: None })
            }
            AccessLogTarget::File(path) => {
                let file = open(path)?;
                let identity = identity(&file.metadata()?);
                let named = Named { path: path.clone(), identity, looked: clock::now(), tried: None };
                Some(Self { file, named: Some(named) })
            }
        })
    }

    /// Opens what the path names now. After a failure all goes on where it went.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        let Some(named) = &mut self.named else { return Ok(()) };
        let file = open(&named.path)?;
        named.identity = identity(&file.metadata()?);
        named.tried = None;
        self.file = file;
        Ok(())
    }

    /// Another file stands at the path. Nobody may have told us: a predecessor that drains gets no signals any more.
    /// A path without a file is left alone, for whoever moves the file away may be about to make the next. Each file is
    /// told of once.
    pub(super) fn is_replaced(&mut self) -> bool {
        let Some(named) = &mut self.named else { return false };
        let now = clock::now();
        if now.duration_since(named.looked) < limits::ACCESS_LOG_LOOK_EVERY {
            return false;
        }
        named.looked = now;
        let Ok(found) = std::fs::metadata(&named.path).map(|metadata| identity(&metadata)) else {
            return false;
        };
        let is_new = found != named.identity && named.tried != Some(found);
        if is_new {
            named.tried = Some(found);
        }
        is_new
    }

    /// Writes on from `written`, and moves it as far as it comes.
    pub(super) fn write(&mut self, bytes: &[u8], written: &mut usize) -> io::Result<()> {
        while *written < bytes.len() {
            match self.file.write(&bytes[*written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => *written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Of a file that is made: it names visitors.
const MODE: u32 = 0o640;

/// Whether the log could be opened; no file is made.
///
/// # Errors
/// Its folder is not there, or its path names a folder.
pub(crate) fn check(target: &AccessLogTarget) -> io::Result<()> {
    let AccessLogTarget::File(path) = target else { return Ok(()) };
    let wrong = |text: String| {
        Err(io::Error::new(ErrorKind::NotFound, format!("access_log {}: {text}", path.display())))
    };
    let named = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = named.unwrap_or(Path::new("."));
    if !folder.is_dir() {
        return wrong(format!("there is no folder {}; make it, or name another file", folder.display()));
    }
    if path.is_dir() {
        return wrong("is a folder; name a file in it".to_owned());
    }
    Ok(())
}

fn open(path: &Path) -> io::Result<File> {
    // A pipe opened for writing alone would keep the start waiting for its reader (fifo(7)).
    let is_pipe = std::fs::metadata(path).is_ok_and(|metadata| metadata.file_type().is_fifo());
    let file = match is_pipe {
        true => OpenOptions::new().read(true).write(true).open(path),
        false => OpenOptions::new().create(true).append(true).mode(MODE).open(path),
    };
    file.map_err(|error| io::Error::new(error.kind(), format!("access log {}: {error}", path.display())))
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}
