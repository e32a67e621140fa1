//! Which backend this process uses, and the runtime that a worker thread runs on it.

use std::{fmt, future::Future, io, str::FromStr};

use tokio::task::LocalSet;

/// What moves the bytes of every worker of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Uring { flags: RingFlags },
    Epoll,
}

/// What the operator asked for (`--io`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IoChoice {
    /// io_uring if the kernel grants it, else epoll with one line in the log.
    #[default]
    Auto,
    Uring,
    Epoll,
}

/// The kernel refused a ring; says the likely cause.
#[derive(Debug, thiserror::Error)]
#[error("the kernel refuses io_uring ({errno}): {cause}")]
pub struct Refused {
    errno: io::Error,
    cause: &'static str,
}

/// How rings are set up on this kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingFlags {
    coop_taskrun: bool,
}

/// Entries of the submission queue. Small on purpose: a full queue is submitted at once, a large one waits for the thread
/// to park.
const SUBMISSION_ENTRIES: u32 = 32;
/// Entries of the completion queue: more operations than this may be in flight, the kernel then holds completions back.
const COMPLETION_ENTRIES: u32 = 8192;

/// Chooses the backend for this process, once, at start.
///
/// # Errors
/// Only when the operator insists on io_uring and the kernel refuses it.
pub fn choose(choice: IoChoice) -> Result<(Backend, Option<Refused>), Refused> {
    match choice {
        IoChoice::Epoll => Ok((Backend::Epoll, None)),
        IoChoice::Uring => probe().map(|flags| (Backend::Uring { flags }, None)),
        IoChoice::Auto => match probe() {
            Ok(flags) => Ok((Backend::Uring { flags }, None)),
            Err(refused) => Ok((Backend::Epoll, Some(refused))),
        },
    }
}

/// Sets up a ring as a worker would and drops it: EPERM and ENOSYS show here, and so do unknown flags.
///
/// # Errors
/// When no ring with POLL_ADD can be made.
pub fn probe() -> Result<RingFlags, Refused> {
    let with_coop = RingFlags { coop_taskrun: true };
    match try_ring(with_coop) {
        Ok(()) => Ok(with_coop),
        // Kernels before 5.19 do not know the flag.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let plain = RingFlags { coop_taskrun: false };
            try_ring(plain).map(|()| plain).map_err(Refused::new)
        }
        Err(error) => Err(Refused::new(error)),
    }
}

fn try_ring(flags: RingFlags) -> io::Result<()> {
    let ring: io_uring::IoUring = ring_builder(flags).build(SUBMISSION_ENTRIES)?;
    let mut opcodes = io_uring::Probe::new();
    ring.submitter().register_probe(&mut opcodes)?;
    if opcodes.is_supported(io_uring::opcode::PollAdd::CODE) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::ENOSYS))
    }
}

fn ring_builder(flags: RingFlags) -> io_uring::Builder {
    let mut builder = tokio_uring::uring_builder();
    builder.setup_cqsize(COMPLETION_ENTRIES).setup_clamp();
    if flags.coop_taskrun {
        builder.setup_coop_taskrun();
    }
    builder
}

/// One worker thread's runtime; everything that runs on it may be `!Send`.
pub enum Runtime {
    Uring(tokio_uring::Runtime),
    Epoll { runtime: tokio::runtime::Runtime, local: LocalSet },
}

impl Runtime {
    /// Makes the runtime on the thread that will run it.
    ///
    /// # Errors
    /// When the kernel grants no ring, epoll or timer descriptor.
    pub fn new(backend: Backend) -> io::Result<Self> {
        match backend {
            Backend::Uring { flags } => {
                let mut builder = tokio_uring::builder();
                builder.entries(SUBMISSION_ENTRIES).uring_builder(&ring_builder(flags));
                Ok(Self::Uring(tokio_uring::Runtime::new(&builder)?))
            }
            Backend::Epoll => Ok(Self::Epoll {
                runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
                local: LocalSet::new(),
            }),
        }
    }

    /// Runs `future` to its end; tasks spawned with `tokio::task::spawn_local` run beside it.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        match self {
            Self::Uring(runtime) => runtime.block_on(future),
            Self::Epoll { runtime, local } => runtime.block_on(local.run_until(future)),
        }
    }
}

impl Refused {
    fn new(errno: io::Error) -> Self {
        let cause = match errno.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "a seccomp profile or the sysctl kernel.io_uring_disabled forbids it; containers do so by default. Use --io epoll, or allow io_uring_setup"
            }
            Some(libc::ENOSYS) => {
                "this kernel (or sandbox) has no io_uring, or none with POLL_ADD. Use --io epoll, or a kernel from 5.15 on"
            }
            Some(libc::ENOMEM) => {
                "locked memory is used up; raise RLIMIT_MEMLOCK (ulimit -l), or use --io epoll"
            }
            Some(libc::EMFILE | libc::ENFILE) => "no descriptor is left; raise ulimit -n",
            _ => "an unexpected answer of io_uring_setup. Use --io epoll",
        };
        Self { errno, cause }
    }
}

impl Backend {
    /// "uring" or "epoll": the metric's label and the log's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Uring { .. } => "uring",
            Self::Epoll => "epoll",
        }
    }
}

impl fmt::Debug for Runtime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Uring(_) => "Runtime::Uring",
            Self::Epoll { .. } => "Runtime::Epoll",
        })
    }
}

impl FromStr for IoChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "epoll" => Ok(Self::Epoll),
            other => Err(format!("{other:?} is not an I/O backend: use auto, uring or epoll")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_errno_names_a_next_step() {
        for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM, libc::EMFILE, libc::EIO] {
            let text = Refused::new(io::Error::from_raw_os_error(errno)).to_string();
            assert!(text.contains("io_uring"), "{text}");
            assert!(text.contains("--io epoll") || text.contains("ulimit"), "{text}");
        }
    }

    #[test]
    fn an_unknown_backend_is_named() {
        assert!("kqueue".parse::<IoChoice>().unwrap_err().contains("kqueue"));
    }
}
