//! Progress of long work: a bar on a terminal, nothing elsewhere.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::draws_progress;

/// A bar that knows its end, or a spinner when `length` is 0. Invisible where standard error is no terminal.
pub(crate) fn bar(what: &'static str, length: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::hidden());
    if !draws_progress() {
        return bar;
    }
    let template = if length == 0 {
        "{prefix} {spinner} {msg} {elapsed}"
    } else {
        "{prefix} {bar:30} {pos}/{len} {msg} {elapsed}"
    };
    bar.set_style(ProgressStyle::with_template(template).expect("the template is a constant that parses"));
    bar.set_prefix(what);
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}
