//! CPU time of a server and its children, from /proc: the steady figure on a shared machine.

use std::time::Duration;

use anyhow::{Context, Result};

/// User and system time of `pid` and of its direct children, so that nginx's worker counts with its master.
pub(crate) fn cpu_time(pid: u32) -> Result<Duration> {
    let mut total = of_process(pid).with_context(|| format!("CPU time of process {pid}"))?;
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    for child in children.split_whitespace() {
        if let Ok(child) = child.parse() {
            total += of_process(child).unwrap_or_default();
        }
    }
    Ok(total)
}

/// Resident memory of `pid`, bytes.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib: u64 = line.split_whitespace().nth(1).context("no figure in VmRSS")?.parse()?;
    Ok(kib * 1024)
}

fn of_process(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The command's name, in parentheses, may hold spaces: fields are counted after it (proc(5)).
    let after_name = stat.rsplit_once(") ").context("unexpected /proc stat line")?.1;
    let fields: Vec<&str> = after_name.split(' ').collect();
    let ticks: u64 = fields.get(11).context("no utime")?.parse::<u64>()?
        + fields.get(12).context("no stime")?.parse::<u64>()?;
    let per_second = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_secs_f64(ticks as f64 / per_second as f64))
}
