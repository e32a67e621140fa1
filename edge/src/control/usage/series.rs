//! The counts of one process, on disk until the control plane has them.
//!
//! `<series>.usage` holds what is in no report yet and the one report that is made and not acknowledged; a report is on disk
//! before it is sent, so that after a crash the same number never has another content. `<series>.lock` is locked for as long
//! as the process lives: whoever can lock it takes the series over.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use portico_api::distribution::{USAGE_ROWS_MAX, Usage, UsageFile, UsageReport};
use prost::Message as _;
use rustix::fs::FlockOperation;

use super::super::files::{self, FileError};
use super::super::limits;
use crate::live::{Counts, Host};

/// One process's counts.
#[derive(Debug)]
pub(super) struct Series {
    id: [u8; 16],
    folder: PathBuf,
    number: u64,
    pending: Option<UsageReport>,
    /// By hour, then by domain id.
    rows: BTreeMap<(u64, String), Usage>,
    is_saved: bool,
    _lock: File,
}

impl Series {
    /// A new one, for this process.
    ///
    /// # Errors
    /// [`FileError`], when its lock file cannot be made.
    pub(super) fn begin(folder: &Path) -> Result<Self, FileError> {
        let mut id = [0; 16];
        aws_lc_rs::rand::fill(&mut id).map_err(|_| FileError::Io {
            action: "find random bytes for",
            path: folder.to_owned(),
            source: io::ErrorKind::Other.into(),
        })?;
        let path = folder.join(hex::encode(id)).with_extension("lock");
        let failed = |source| FileError::Io { action: "create", path: path.clone(), source };
        // Locked before it can be found.
        let aside = path.with_extension("new");
        let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside);
        let lock = lock.map_err(failed)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|error| failed(error.into()))?;
        fs::rename(&aside, &path).map_err(failed)?;
        let (folder, rows) = (folder.to_owned(), BTreeMap::new());
        Ok(Self { id, folder, number: 0, pending: None, rows, is_saved: true, _lock: lock })
    }

    /// Those that other processes have left behind. What is damaged is put aside and told; what only cannot be read now (no
    /// descriptor is free, a mode is wrong) stays for the next time: these figures are money.
    ///
    /// # Errors
    /// [`FileError`], when the folder cannot be read.
    pub(super) fn left_behind(folder: &Path) -> Result<Vec<Self>, FileError> {
        let failed = |source| FileError::Io { action: "read", path: folder.to_owned(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.extension().is_none_or(|extension| extension != "lock") {
                continue;
            }
            match Self::adopt(folder, &path) {
                Ok(series) => found.extend(series),
                Err(error @ (FileError::Mode { .. } | FileError::Io { .. })) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "a file with figures of usage cannot be read now; will try again"
                    );
                }
                Err(error @ (FileError::Damaged { .. } | FileError::TooLarge { .. })) => {
                    let aside = path.with_extension("damaged");
                    tracing::error!(%error, aside = %aside.display(), "a file with figures of usage is put aside: what it holds is not in any invoice");
                    let _ = fs::rename(path.with_extension("usage"), aside);
                    let _ = fs::remove_file(&path);
                }
            }
        }
        Ok(found)
    }

    /// None: its process lives, or it has left nothing.
    fn adopt(folder: &Path, lock_path: &Path) -> Result<Option<Self>, FileError> {
        let failed = |source| FileError::Io { action: "open", path: lock_path.to_owned(), source };
        let lock = match OpenOptions::new().write(true).open(lock_path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(error) => return Err(failed(error.into())),
        }
        let path = lock_path.with_extension("usage");
        let Some(bytes) = files::read_private(&path, limits::USAGE_FILE_BYTES_MAX)? else {
            let _ = fs::remove_file(lock_path);
            return Ok(None);
        };
        let damaged = |_| FileError::Damaged { path: path.clone() };
        let (sum, content) = bytes.split_at_checked(4).ok_or(()).map_err(damaged)?;
        if crc32c::crc32c(content).to_le_bytes() != sum {
            return Err(damaged(()));
        }
        let UsageFile { series, number, pending, rows } =
            UsageFile::decode(content).map_err(|_| damaged(()))?;
        let id = series.as_ref().try_into().map_err(|_| damaged(()))?;
        let rows = rows.into_iter().map(|row| ((row.hour, row.domain_id.clone()), row)).collect();
        Ok(Some(Self { id, folder: folder.to_owned(), number, pending, rows, is_saved: true, _lock: lock }))
    }

    pub(super) fn add(&mut self, host: &Host, hour: u64, counts: Counts) {
        let (tenant_id, domain_id) = (host.tenant.id.to_string(), host.domain.to_string());
        let row = self.rows.entry((hour, domain_id.clone())).or_insert_with(|| Usage {
            tenant_id,
            domain_id,
            name: host.name.to_string(),
            hour,
            ..Usage::default()
        });
        row.requests += counts.requests;
        row.request_bytes += counts.request_bytes;
        row.response_bytes += counts.response_bytes;
        row.cached_bytes += counts.cached_bytes;
        self.is_saved = false;
    }

    /// Makes of the two oldest hours one, until there are at most `most` rows or one hour: sums stay right, and only which
    /// hour they belong to is lost.
    pub(super) fn shorten(&mut self, most: usize) -> bool {
        let mut shortened = false;
        while self.rows.len() > most {
            let Some(oldest) = self.rows.keys().next().map(|(hour, _)| *hour) else { break };
            let mut later = self.rows.split_off(&(oldest + 1, String::new()));
            let Some(next) = later.keys().next().map(|(hour, _)| *hour) else { break };
            for ((_, domain), row) in std::mem::take(&mut self.rows) {
                match later.get_mut(&(next, domain.clone())) {
                    Some(kept) => {
                        kept.requests += row.requests;
                        kept.request_bytes += row.request_bytes;
                        kept.response_bytes += row.response_bytes;
                        kept.cached_bytes += row.cached_bytes;
                    }
                    None => {
                        later.insert((next, domain), Usage { hour: next, ..row });
                    }
                }
            }
            self.rows = later;
            (shortened, self.is_saved) = (true, false);
        }
        shortened
    }

    /// The report that is under way, or a new one of the oldest rows. It may be sent once [`Series::save`] has succeeded.
    pub(super) fn report(&mut self) -> Option<&UsageReport> {
        if self.pending.is_none() && !self.rows.is_empty() {
            let rest = match self.rows.keys().nth(USAGE_ROWS_MAX).cloned() {
                Some(first) => self.rows.split_off(&first),
                None => BTreeMap::new(),
            };
            let rows = std::mem::replace(&mut self.rows, rest).into_values().collect();
            self.number += 1;
            self.pending = Some(UsageReport { series: self.id.to_vec().into(), number: self.number, rows });
            self.is_saved = false;
        }
        self.pending.as_ref()
    }

    /// The control plane has it.
    pub(super) fn acknowledged(&mut self, series: &[u8], number: u64) {
        let is_pending = self.pending.as_ref().is_some_and(|pending| pending.number == number);
        if is_pending && *series == self.id {
            self.pending = None;
            self.is_saved = false;
        }
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.pending.is_none() && self.rows.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Brings the disk up to date.
    ///
    /// # Errors
    /// [`FileError`]; it may be tried again.
    pub(super) fn save(&mut self) -> Result<(), FileError> {
        if self.is_saved {
            return Ok(());
        }
        let file = UsageFile {
            series: self.id.to_vec().into(),
            number: self.number,
            pending: self.pending.clone(),
            rows: self.rows.values().cloned().collect(),
        };
        let mut bytes = vec![0; 4];
        file.encode(&mut bytes).expect("a vector grows");
        let sum = crc32c::crc32c(&bytes[4..]).to_le_bytes();
        bytes[..4].copy_from_slice(&sum);
        files::write_private(&self.path("usage"), &bytes)?;
        self.is_saved = true;
        Ok(())
    }

    /// Removes what is on disk: nothing is left to tell.
    pub(super) fn end(self) {
        // The lock goes last: without the other file it means nothing.
        let _ = fs::remove_file(self.path("usage"));
        let _ = fs::remove_file(self.path("lock"));
    }

    fn path(&self, extension: &str) -> PathBuf {
        self.folder.join(hex::encode(self.id)).with_extension(extension)
    }
}

#[cfg(test)]
impl Series {
    /// As a process that has ended.
    pub(super) fn leave_one_row(mut self) {
        let row = Usage { hour: 1, domain_id: "a".to_owned(), requests: 1, ..Usage::default() };
        self.rows.insert((1, "a".to_owned()), row);
        self.is_saved = false;
        self.save().expect("the disk takes it");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn series(folder: &Path) -> Series {
        Series::begin(folder).unwrap()
    }

    fn put(series: &mut Series, hour: u64, domain: &str, requests: u64) {
        let row = Usage { hour, domain_id: domain.to_owned(), requests, ..Usage::default() };
        series.rows.insert((hour, domain.to_owned()), row);
        series.is_saved = false;
    }

    #[test]
    fn what_a_process_has_left_behind_is_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let mut dead = series(folder.path());
        put(&mut dead, 1, "a", 3);
        let sent = dead.report().unwrap().clone();
        put(&mut dead, 1, "a", 4);
        dead.save().unwrap();
        assert!(Series::left_behind(folder.path()).unwrap().is_empty(), "it lives");
        drop(dead);
        let mut found = Series::left_behind(folder.path()).unwrap();
        let [adopted] = found.as_mut_slice() else { panic!("{found:?}") };
        assert_eq!(adopted.report(), Some(&sent), "the same number has the same content");
        adopted.acknowledged(b"another series..", 1);
        adopted.acknowledged(&sent.series, 2);
        assert!(adopted.has_pending());
        adopted.acknowledged(&sent.series, 1);
        let next = adopted.report().unwrap();
        assert_eq!((next.number, next.rows[0].requests), (2, 4));
        adopted.acknowledged(&sent.series, 2);
        assert!(adopted.is_empty());
        found.pop().unwrap().end();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_report_is_bounded_and_the_rest_comes_later() {
        let folder = tempfile::tempdir().unwrap();
        let mut series = series(folder.path());
        for domain in 0..USAGE_ROWS_MAX + 1 {
            put(&mut series, 5, &domain.to_string(), 1);
        }
        assert_eq!(series.report().unwrap().rows.len(), USAGE_ROWS_MAX);
        assert_eq!(series.report().unwrap().number, 1, "one is under way at a time");
        let id = series.id;
        series.acknowledged(&id, 1);
        assert_eq!(series.report().unwrap().rows.len(), 1);
    }

    #[test]
    fn too_many_rows_lose_their_hour_and_no_request() {
        let folder = tempfile::tempdir().unwrap();
        let mut series = series(folder.path());
        for hour in 1..=4 {
            for domain in ["a", "b"] {
                put(&mut series, hour, domain, hour);
            }
        }
        put(&mut series, 1, "gone", 7);
        assert!(series.shorten(5));
        let rows: Vec<_> =
            series.rows.values().map(|row| (row.hour, row.domain_id.as_str(), row.requests)).collect();
        assert_eq!(rows, [(3, "a", 6), (3, "b", 6), (3, "gone", 7), (4, "a", 4), (4, "b", 4)]);
        assert!(series.shorten(1));
        assert_eq!(series.rows.len(), 3, "one hour stays as it is");
        assert_eq!(series.rows.values().map(|row| row.requests).sum::<u64>(), 27);
        assert!(!series.shorten(1));
    }

    /// As many domains as there may be rows, and one hour more of some.
    #[test]
    fn rows_for_a_control_plane_that_is_away_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut series = series(folder.path());
        let most = limits::USAGE_ROWS_KEPT_MAX;
        for domain in 0..most {
            put(&mut series, 2, &domain.to_string(), 1);
        }
        assert!(!series.shorten(most));
        for domain in 0..10 {
            put(&mut series, 1, &domain.to_string(), 1);
        }
        assert!(series.shorten(most) && series.rows.len() == most);
        assert_eq!(series.rows.values().map(|row| row.requests).sum::<u64>(), most as u64 + 10);
    }

    #[test]
    fn a_file_that_is_too_large_is_put_aside_unread() {
        let folder = tempfile::tempdir().unwrap();
        let mut dead = series(folder.path());
        put(&mut dead, 1, "a", 3);
        dead.save().unwrap();
        let path = dead.path("usage");
        drop(dead);
        // Holes take no room on the disk.
        OpenOptions::new()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(limits::USAGE_FILE_BYTES_MAX + 1)
            .unwrap();
        assert!(Series::left_behind(folder.path()).unwrap().is_empty());
        assert!(path.with_extension("damaged").exists() && !path.exists());
    }

    #[test]
    fn a_file_that_cannot_be_read_now_is_reported_later() {
        let folder = tempfile::tempdir().unwrap();
        let mut dead = series(folder.path());
        put(&mut dead, 1, "a", 3);
        dead.save().unwrap();
        let (usage, lock) = (dead.path("usage"), dead.path("lock"));
        drop(dead);
        // As after a backup that was put back; and where no file can be opened.
        fs::set_permissions(&usage, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(Series::left_behind(folder.path()).unwrap().is_empty());
        fs::set_permissions(&usage, fs::Permissions::from_mode(0o600)).unwrap();
        let aside = folder.path().join("aside");
        fs::rename(&lock, &aside).unwrap();
        fs::create_dir(&lock).unwrap();
        assert!(Series::left_behind(folder.path()).unwrap().is_empty());
        fs::remove_dir(&lock).unwrap();
        fs::rename(&aside, &lock).unwrap();
        let found = Series::left_behind(folder.path()).unwrap();
        assert_eq!(found.iter().map(Series::len).sum::<usize>(), 1);
    }

    #[test]
    fn a_damaged_file_is_put_aside() {
        let folder = tempfile::tempdir().unwrap();
        let mut dead = series(folder.path());
        put(&mut dead, 1, "a", 3);
        dead.save().unwrap();
        let path = dead.path("usage");
        drop(dead);
        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(Series::left_behind(folder.path()).unwrap().is_empty());
        let names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(names, [path.with_extension("damaged")]);
    }
}
