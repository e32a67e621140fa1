//! Strict-Transport-Security: what of it goes together.

/// A year: what browsers' preload lists ask for at least (hstspreload.org).
pub const PRELOAD_MAX_AGE_MIN: u32 = 31_536_000;
/// Two years, the longest that they ask for.
pub const MAX_AGE_MAX: u32 = 63_072_000;

/// What a name tells browsers, as it is wished for.
#[derive(Clone, Copy, Debug)]
pub struct HstsWish {
    /// `None`: no header. 0 takes back what browsers were told (RFC 6797 section 6.1.1), of names below too.
    pub max_age_seconds: Option<u32>,
    pub include_subdomains: bool,
    pub preload: bool,
    /// Port 80 leads to https.
    pub https_redirect: bool,
}

impl HstsWish {
    /// What is wrong: the field's name and why.
    pub fn faults(self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let max_age_seconds = self.max_age_seconds.unwrap_or(0);
        if max_age_seconds > MAX_AGE_MAX {
            faults.push(("hsts_max_age_seconds", format!("at most {MAX_AGE_MAX} (two years)")));
        }
        if self.include_subdomains && max_age_seconds == 0 {
            let message = match self.max_age_seconds {
                None => "says nothing without hsts_max_age_seconds",
                Some(_) => "says nothing beside hsts_max_age_seconds of 0, which is for names below too",
            };
            faults.push(("hsts_include_subdomains", message.to_owned()));
        }
        let preloadable =
            self.include_subdomains && self.https_redirect && max_age_seconds >= PRELOAD_MAX_AGE_MIN;
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
