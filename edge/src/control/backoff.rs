//! Waits between attempts: exponential, with full jitter, so that a fleet whose control plane comes back does not return
//! at one moment.

use std::time::Duration;

use super::limits;

#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The wait before the next attempt; each call counts as one more failure.
    pub(super) fn next(&mut self) -> Duration {
        let ceiling = ceiling(self.failures);
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(random_share())
    }

    /// The last attempt was a good one.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

fn ceiling(failures: u32) -> Duration {
    limits::BACKOFF_MIN.saturating_mul(1 << failures.min(16)).min(limits::BACKOFF_MAX)
}

/// Uniform in 0..1.
fn random_share() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the whole wait is the safe choice.
    match aws_lc_rs::rand::fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_are_spread_below_it() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..200).map(|_| backoff.next()).collect();
        assert!(waits[0] <= limits::BACKOFF_MIN);
        let late = &waits[20..];
        assert!(late.iter().all(|wait| *wait <= limits::BACKOFF_MAX));
        // 180 uniform draws: none in the lower half has a chance of 2^-180.
        assert!(late.iter().any(|wait| *wait < limits::BACKOFF_MAX / 2));
        assert!(late.iter().any(|wait| *wait > limits::BACKOFF_MAX / 2));
        backoff.reset();
        assert!(backoff.next() <= limits::BACKOFF_MIN);
    }
}
