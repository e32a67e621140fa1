//! Names that no longer lead here: how long the watch takes for each step.

use serde::Deserialize;

use super::Fault;
use crate::plan::presence::Rules;

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LeaversConfig {
    /// Names that led here once are watched, and retired when they have left.
    pub enabled: bool,
    /// Between two looks at a name, 60 to 604800; absent: 21600 (6 hours).
    pub look_every_seconds: u32,
    /// Looks in a row that must have seen it elsewhere, 2 to 100; absent: 4.
    pub looks: u32,
    /// Time from the first to the last of them at least, 3600 to 2592000; absent: 86400 (a day).
    pub away_seconds: u32,
    /// From then on it is served on for so long, 3600 to 7776000; absent: 604800 (a week).
    pub grace_seconds: u32,
    /// So long after that a certificate without it is ordered, where no renewal comes before; 0 to 518400, absent: 518400
    /// (6 days).
    pub leave_within_seconds: u32,
    /// With more of the watched names away at the same time, and more than ten, nothing goes on until an operator has
    /// looked; 1 to 100 percent, absent: 10.
    pub most_percent: u32,
}

impl Default for LeaversConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            look_every_seconds: 21_600,
            looks: 4,
            away_seconds: 86_400,
            grace_seconds: 604_800,
            leave_within_seconds: 518_400,
            most_percent: 10,
        }
    }
}

impl LeaversConfig {
    pub(super) fn check(&self) -> Result<(), Fault> {
        let bounds = [
            ("look_every_seconds", self.look_every_seconds, 60, 604_800),
            ("looks", self.looks, 2, 100),
            ("away_seconds", self.away_seconds, 3600, 2_592_000),
            ("grace_seconds", self.grace_seconds, 3600, 7_776_000),
            // An order takes its time, and a name that is gone is to be off within 7 days.
            ("leave_within_seconds", self.leave_within_seconds, 0, 518_400),
            ("most_percent", self.most_percent, 1, 100),
        ];
        for (field, value, least, most) in bounds {
            if !(least..=most).contains(&value) {
                let key = format!("leavers.{field}");
                return Err(Fault::new(&key, format!("{key} = {value} must be from {least} to {most}")));
            }
        }
        Ok(())
    }

    pub(crate) fn rules(&self) -> Rules {
        let ms = |seconds: u32| i64::from(seconds) * 1000;
        Rules {
            look_every_ms: ms(self.look_every_seconds),
            looks: self.looks,
            away_ms: ms(self.away_seconds),
            grace_ms: ms(self.grace_seconds),
            leave_within_ms: ms(self.leave_within_seconds),
            most_percent: self.most_percent,
        }
    }
}
