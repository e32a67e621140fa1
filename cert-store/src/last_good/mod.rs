//! Last-good files: what an edge needs to serve again after a restart, with nobody to ask.
//!
//! One folder (0700) of files (0600): snapshots `<epoch>-<sequence>.snap`, beside each the log of the deltas that came
//! after it, and `CURRENT`, which names the snapshot in force. Files are written aside, synced, renamed, and the folder
//! synced; a crash at any point leaves the state before or after. Three snapshots are kept with their logs, and since a
//! snapshot is written from the state that the older log leads to, falling back to it loses little or nothing.
//!
//! [`LastGood::load`] never fails on damaged bytes: it falls back, newest first, and says so in `warnings`. Frames are
//! opaque here; private keys in them are sealed. Deliberately absent: a lock against a second process (the old one may
//! still drain while the new one starts; only one of them publishes), and any reading while serving.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use self::frame::Damage;
pub use self::frame::FRAME_BYTES_MAX;
use crate::ids::Generation;

mod delta_log;
mod frame;
mod snapshot_file;

/// Snapshots kept, the current one included.
pub const SNAPSHOTS_KEPT: usize = 3;
/// A log beyond this is compacted, whatever the snapshot's size.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Below this a log is never worth a new snapshot: a tenth of a small snapshot would be reached at every change.
const LOG_BYTES_MIN: u64 = 256 * 1024;

const CURRENT: &str = "CURRENT";
const CURRENT_MAGIC: &str = "portico-last-good 1";
/// `CURRENT` has less than 100 bytes.
const CURRENT_BYTES_MAX: u64 = 1024;
/// Files that are looked at in the folder; there are 7 of ours.
const FOLDER_FILES_MAX: usize = 1000;

/// The last-good files of one folder. One process publishes through one of these.
#[derive(Debug)]
pub struct LastGood {
    folder: PathBuf,
    current: Option<Current>,
}

/// What was on disk.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Of the state that `resources` and then `deltas` lead to; (0, 0) if there is nothing.
    pub generation: Generation,
    /// The snapshot's frames, in the order written.
    pub resources: Frames,
    pub deltas: Vec<LoggedDelta>,
    /// For the operator: each says what was damaged and what was done.
    pub warnings: Vec<String>,
}

/// The frames of a snapshot, in one allocation: a snapshot of 100,000 names has 200,000.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Frames {
    bytes: Vec<u8>,
    ranges: Vec<Range<usize>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoggedDelta {
    pub generation: Generation,
    pub frames: Vec<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
pub enum LastGoodError {
    #[error("cannot {action} {path}; check the disk and the folder's owner")]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("generation {offered} is not above {present}, which is already on disk")]
    NotNewer { offered: Generation, present: Generation },
    #[error("a delta needs a snapshot below it and there is none; write a snapshot first")]
    NoSnapshot,
    #[error("the delta log could not be restored after a failed write; write a snapshot")]
    LogBroken,
}

/// The snapshot in force and its log.
#[derive(Debug)]
struct Current {
    snapshot: Generation,
    snapshot_bytes: u64,
    /// Of the last delta, or the snapshot.
    last: Generation,
    log: LogState,
}

#[derive(Debug)]
enum LogState {
    /// Not yet opened for writing; whole deltas end at this byte.
    Closed {
        good_bytes: u64,
    },
    Open {
        file: File,
        bytes: u64,
    },
    /// A write failed and could not be undone.
    Broken,
}

impl Frames {
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.ranges.iter().map(|range| &self.bytes[range.clone()])
    }

    /// The file as it was read, and where in it each frame is.
    pub fn into_parts(self) -> (Vec<u8>, Vec<Range<usize>>) {
        (self.bytes, self.ranges)
    }
}

impl LastGood {
    /// Opens the folder, which is made if it is not there. Call [`load`](Self::load) next.
    ///
    /// # Errors
    /// Where it cannot be made, or its access mode cannot be narrowed to the owner.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, LastGoodError> {
        let folder = folder.into();
        let failed =
            |source| LastGoodError::Io { action: "prepare the folder", path: folder.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let mode = fs::metadata(&folder).map_err(failed)?.permissions().mode();
        if mode & 0o077 != 0 {
            fs::set_permissions(&folder, Permissions::from_mode(0o700)).map_err(failed)?;
        }
        Ok(Self { folder, current: None })
    }

    /// Reads the newest state that is whole. An empty folder gives an empty state without a warning.
    ///
    /// # Errors
    /// Only where the folder itself cannot be listed.
    pub fn load(&mut self) -> Result<Loaded, LastGoodError> {
        let mut warnings = Vec::new();
        let mut candidates = self.snapshots()?;
        let named = self.read_current(candidates.is_empty(), &mut warnings);
        candidates.sort_by_key(|&generation| std::cmp::Reverse((Some(generation) == named, generation)));
        for snapshot in candidates {
            match self.read_snapshot(snapshot) {
                Ok((resources, snapshot_bytes)) => {
                    if named.is_some_and(|named| named != snapshot) {
                        warnings.push(format!("fell back to the snapshot of generation {snapshot}"));
                    }
                    return Ok(self.take_up(snapshot, snapshot_bytes, resources, warnings));
                }
                Err(damage) => warnings.push(format!(
                    "the snapshot of generation {snapshot} cannot be used: {}; it stays in the folder until the next one is written",
                    damage.text()
                )),
            }
        }
        self.current = None;
        Ok(Loaded { warnings, ..Loaded::default() })
    }

    /// Replaces the state in force: after it returns, a crash restores `generation`.
    ///
    /// # Errors
    /// [`LastGoodError::NotNewer`] below what is on disk; I/O errors, after which the state before stays in force.
    pub fn write_snapshot<F: AsRef<[u8]>>(
        &mut self,
        generation: Generation,
        frames: impl IntoIterator<Item = F>,
    ) -> Result<(), LastGoodError> {
        if let Some(current) = &self.current {
            // Equal: a compaction. But a log would then be found beside the new snapshot that is not its own.
            let rewritten = generation == current.snapshot && current.last > current.snapshot;
            if generation < current.last || rewritten {
                return Err(LastGoodError::NotNewer { offered: generation, present: current.last });
            }
        }
        let name = snapshot_name(generation);
        let mut snapshot_bytes = 0;
        self.replace(&name, |file| {
            snapshot_bytes = snapshot_file::write(file, generation, frames)?;
            Ok(())
        })?;
        // A log of this name can only be a remnant of a state that was given up.
        self.remove(&log_name(generation))?;
        let text = current_text(generation);
        self.replace(CURRENT, |mut file| file.write_all(text.as_bytes()))?;
        let log = LogState::Closed { good_bytes: 0 };
        self.current = Some(Current { snapshot: generation, snapshot_bytes, last: generation, log });
        self.prune()
    }

    /// Appends a delta to the log; it is on disk when this returns.
    ///
    /// # Errors
    /// [`LastGoodError::NoSnapshot`], [`LastGoodError::NotNewer`], and I/O errors, after which the log is as before
    /// or, if even that fails, [`LastGoodError::LogBroken`] until the next snapshot.
    pub fn append<F: AsRef<[u8]>>(
        &mut self,
        generation: Generation,
        frames: &[F],
    ) -> Result<(), LastGoodError> {
        let current = self.current.as_mut().ok_or(LastGoodError::NoSnapshot)?;
        if generation <= current.last {
            return Err(LastGoodError::NotNewer { offered: generation, present: current.last });
        }
        let path = self.folder.join(log_name(current.snapshot));
        let failed = |source| LastGoodError::Io { action: "append to", path: path.clone(), source };
        let record = delta_log::encode(current.snapshot, generation, frames).map_err(failed)?;
        let (mut file, bytes) = match std::mem::replace(&mut current.log, LogState::Broken) {
            LogState::Broken => return Err(LastGoodError::LogBroken),
            LogState::Open { file, bytes } => (file, bytes),
            LogState::Closed { good_bytes } => open_log(&self.folder, &path, good_bytes)
                .inspect_err(|_| current.log = LogState::Closed { good_bytes })
                .map_err(failed)?,
        };
        match file.write_all(&record).and_then(|()| file.sync_data()) {
            Ok(()) => {
                current.log = LogState::Open { file, bytes: bytes + record.len() as u64 };
                current.last = generation;
                Ok(())
            }
            Err(error) => {
                // What was written in part would hide all that comes after it.
                if rewind(&mut file, bytes).is_ok() {
                    current.log = LogState::Open { file, bytes };
                }
                Err(failed(error))
            }
        }
    }

    /// Whether the log has grown so far that the next change should be a snapshot: past 64 MiB or a tenth of the
    /// snapshot, or unusable.
    pub fn needs_compaction(&self) -> bool {
        let Some(current) = &self.current else { return false };
        let bytes = match current.log {
            LogState::Closed { good_bytes } => good_bytes,
            LogState::Open { bytes, .. } => bytes,
            LogState::Broken => return true,
        };
        bytes > LOG_BYTES_MAX || (bytes > LOG_BYTES_MIN && bytes > current.snapshot_bytes / 10)
    }

    /// Of the last snapshot or delta on disk; (0, 0) if there is none.
    pub fn generation(&self) -> Generation {
        self.current.as_ref().map_or(Generation::default(), |current| current.last)
    }

    /// Reads the log that belongs to a good snapshot, and makes both the state in force.
    fn take_up(
        &mut self,
        snapshot: Generation,
        snapshot_bytes: u64,
        resources: Frames,
        mut warnings: Vec<String>,
    ) -> Loaded {
        let log = match File::open(self.folder.join(log_name(snapshot))) {
            Ok(file) => delta_log::read(&file, snapshot),
            Err(error) if error.kind() == io::ErrorKind::NotFound => delta_log::Log::default(),
            Err(error) => delta_log::Log { damage: Some(Damage::Io(error)), ..Default::default() },
        };
        let generation = log.deltas.last().map_or(snapshot, |delta| delta.generation);
        if let Some(damage) = &log.damage {
            warnings.push(format!(
                "the log after snapshot {snapshot} is damaged behind generation {generation}: {}; the rest is dropped, and the control plane will send it again",
                damage.text()
            ));
        }
        // A log that may be whole but could not be read is not to be cut.
        let state = match log.damage {
            Some(Damage::Io(_)) => LogState::Broken,
            _ => LogState::Closed { good_bytes: log.good_bytes },
        };
        self.current = Some(Current { snapshot, snapshot_bytes, last: generation, log: state });
        Loaded { generation, resources, deltas: log.deltas, warnings }
    }

    fn read_snapshot(&self, generation: Generation) -> Result<(Frames, u64), Damage> {
        let file = File::open(self.folder.join(snapshot_name(generation)))?;
        let frames = snapshot_file::read(&file, generation)?;
        Ok((frames, file.metadata()?.len()))
    }

    /// The snapshot that `CURRENT` names. Without snapshots it is not missed.
    fn read_current(&self, is_empty: bool, warnings: &mut Vec<String>) -> Option<Generation> {
        let path = self.folder.join(CURRENT);
        let text = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_empty => return None,
            Err(error) => Err(error.to_string()),
            Ok(metadata) if metadata.len() > CURRENT_BYTES_MAX => Err("it is too long".to_owned()),
            Ok(_) => fs::read_to_string(&path).map_err(|error| error.to_string()),
        };
        let named =
            text.and_then(|text| parse_current(&text).ok_or_else(|| "its text is damaged".to_owned()));
        match named {
            Ok(generation) => Some(generation),
            Err(reason) => {
                warnings.push(format!(
                    "{} cannot be used: {reason}; taking the newest snapshot that is whole",
                    path.display()
                ));
                None
            }
        }
    }

    fn snapshots(&self) -> Result<Vec<Generation>, LastGoodError> {
        Ok(self.names()?.iter().filter_map(|name| generation_of(name, SNAPSHOT_SUFFIX)).collect())
    }

    fn names(&self) -> Result<Vec<String>, LastGoodError> {
        let failed = |source| LastGoodError::Io { action: "list", path: self.folder.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(failed)?.take(FOLDER_FILES_MAX) {
            if let Ok(name) = entry.map_err(failed)?.file_name().into_string() {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// Writes a file aside, syncs it, puts it in its place and syncs the folder.
    fn replace(&self, name: &str, write: impl FnOnce(&File) -> io::Result<()>) -> Result<(), LastGoodError> {
        let (path, aside) = (self.folder.join(name), self.folder.join(format!("{name}{ASIDE_SUFFIX}")));
        let failed = |source| LastGoodError::Io { action: "write", path: path.clone(), source };
        let written = create(&aside).and_then(|file| {
            write(&file)?;
            file.sync_all()
        });
        if let Err(error) = written {
            // The disk may be full: do not leave the part that was written.
            let _ = fs::remove_file(&aside);
            return Err(failed(error));
        }
        fs::rename(&aside, &path).and_then(|()| sync_folder(&self.folder)).map_err(failed)
    }

    fn remove(&self, name: &str) -> Result<(), LastGoodError> {
        let path = self.folder.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(LastGoodError::Io { action: "remove", path, source: error })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Removes all but the newest snapshots up to the one in force, their logs, and what was left aside. Snapshots
    /// above it were damaged or never came into force.
    fn prune(&self) -> Result<(), LastGoodError> {
        let names = self.names()?;
        let in_force = self.generation();
        let mut kept: Vec<Generation> =
            names.iter().filter_map(|name| generation_of(name, SNAPSHOT_SUFFIX)).collect();
        kept.retain(|generation| *generation <= in_force);
        kept.sort_unstable_by(|a, b| b.cmp(a));
        kept.truncate(SNAPSHOTS_KEPT);
        for name in names {
            let generation =
                generation_of(&name, SNAPSHOT_SUFFIX).or_else(|| generation_of(&name, LOG_SUFFIX));
            let is_old = generation.is_some_and(|generation| !kept.contains(&generation));
            if is_old || name.ends_with(ASIDE_SUFFIX) {
                self.remove(&name)?;
            }
        }
        Ok(())
    }
}

impl Damage {
    fn text(&self) -> String {
        match self {
            Self::Torn => "it ends too early".into(),
            Self::Wrong(what) => format!("{what} is wrong"),
            Self::Io(error) => error.to_string(),
        }
    }
}

const SNAPSHOT_SUFFIX: &str = ".snap";
const LOG_SUFFIX: &str = ".log";
const ASIDE_SUFFIX: &str = ".aside";

fn snapshot_name(generation: Generation) -> String {
    format!("{generation}{SNAPSHOT_SUFFIX}")
}

fn log_name(generation: Generation) -> String {
    format!("{generation}{LOG_SUFFIX}")
}

fn generation_of(name: &str, suffix: &str) -> Option<Generation> {
    name.strip_suffix(suffix)?.parse().ok()
}

fn current_text(generation: Generation) -> String {
    let text = format!("{CURRENT_MAGIC} {generation}");
    format!("{text} {:08x}\n", crc32c::crc32c(text.as_bytes()))
}

fn parse_current(text: &str) -> Option<Generation> {
    let generation = text.strip_prefix(CURRENT_MAGIC)?.split(' ').nth(1)?.parse().ok()?;
    (current_text(generation) == text).then_some(generation)
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Opens a log to write behind its last whole delta; a new one begins with its header.
fn open_log(folder: &Path, path: &Path, good_bytes: u64) -> io::Result<(File, u64)> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    rewind(&mut file, good_bytes)?;
    if good_bytes > 0 {
        return Ok((file, good_bytes));
    }
    let header = delta_log::header();
    file.write_all(&header)?;
    sync_folder(folder)?;
    Ok((file, header.len() as u64))
}

fn rewind(file: &mut File, bytes: u64) -> io::Result<()> {
    file.set_len(bytes)?;
    file.seek(SeekFrom::Start(bytes))?;
    Ok(())
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
