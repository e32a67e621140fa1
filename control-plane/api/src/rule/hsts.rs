//! Strict-Transport-Security: what of it goes together.

/// A year: what browsers' preload lists ask for at least (hstspreload.org).
pub const PRELOAD_MAX_AGE_MIN: u32 = 31_536_000;
/// Two years, the longest that they ask for.
pub const MAX_AGE_MAX: u32 = 63_072_000;

/// What a name tells browsers, as it is wished for.
#[derive(Clone, Copy, Debug)]
pub struct HstsWish {
    pub max_age_seconds: u32,
    pub include_subdomains: bool,
    pub preload: bool,
    /// Port 80 leads to https.
    pub https_redirect: bool,
}

impl HstsWish {
    /// What is wrong: the field's name and why.
    pub fn faults(self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if self.max_age_seconds > MAX_AGE_MAX {
            faults.push(("hsts_max_age_seconds", format!("at most {MAX_AGE_MAX} (two years)")));
        }
        if self.include_subdomains && self.max_age_seconds == 0 {
            let message = "says nothing without hsts_max_age_seconds";
            faults.push(("hsts_include_subdomains", message.to_owned()));
        }
        let preloadable =
            self.include_subdomains && self.https_redirect && self.max_age_seconds >= PRELOAD_MAX_AGE_MIN;
        if self.preload && !preloadable {
            let message = format!(
                "needs hsts_include_subdomains, hsts_max_age_seconds of {PRELOAD_MAX_AGE_MIN} (a year) or more, and \
                 port 80 leading to https"
            );
            faults.push(("hsts_preload", message));
        }
        faults
    }
}
