//! `portico domain set` and `portico domain maintenance`: what holds for a whole domain.

use std::time::Duration;

use portico_api::v1::DomainSpec;
use portico_api::v1::client::Client;
use serde_json::{Map, Value, json};

use crate::commands::domain::WaitArgs;
use crate::commands::named_domain::{DomainArgs, whose};
use crate::failure::{Failure, Outcome};
use crate::revision::on_newest;
use crate::settings::Settings;

/// What a domain tells browsers.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// How long browsers shall know the name by https only, such as 365d; 0s: they are told nothing
    #[arg(long, value_name = "DURATION", value_parser = crate::duration::parse)]
    hsts_max_age: Option<Duration>,
    /// For all names below it too
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    hsts_include_subdomains: Option<bool>,
    /// Let browsers build it in, which is hard to take back
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    hsts_preload: Option<bool>,
    /// Port 80 leads to https (true, from the start), or goes to the routes
    #[arg(long, value_name = "BOOL")]
    https_redirect: Option<bool>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetArgs {
    #[command(flatten)]
    which: DomainArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    #[command(flatten)]
    wait: WaitArgs,
}

#[derive(Debug, clap::Args)]
pub(crate) struct MaintenanceArgs {
    #[command(flatten)]
    which: DomainArgs,
    /// Serve again
    #[arg(long, conflicts_with_all = ["text", "retry_after"])]
    end: bool,
    /// Shown to visitors; at most 500 bytes
    #[arg(long, default_value = "")]
    text: String,
    /// When clients shall come again
    #[arg(long, default_value = "5m", value_parser = crate::duration::parse)]
    retry_after: Duration,
    #[command(flatten)]
    wait: WaitArgs,
}

impl PolicyArgs {
    pub(crate) fn apply(&self, spec: &mut DomainSpec) {
        if let Some(age) = self.hsts_max_age {
            spec.hsts_max_age_seconds = u32::try_from(age.as_secs()).unwrap_or(u32::MAX);
        }
        spec.hsts_include_subdomains = self.hsts_include_subdomains.unwrap_or(spec.hsts_include_subdomains);
        spec.hsts_preload = self.hsts_preload.unwrap_or(spec.hsts_preload);
        spec.https_redirect = self.https_redirect.unwrap_or(spec.https_redirect);
    }

    fn patch(&self) -> Map<String, Value> {
        let wishes = [
            ("hsts_max_age_seconds", self.hsts_max_age.map(|age| json!(age.as_secs()))),
            ("hsts_include_subdomains", self.hsts_include_subdomains.map(Value::from)),
            ("hsts_preload", self.hsts_preload.map(Value::from)),
            ("https_redirect", self.https_redirect.map(Value::from)),
        ];
        wishes.into_iter().filter_map(|(name, wish)| Some((name.to_owned(), wish?))).collect()
    }
}

pub(crate) async fn set(settings: &Settings, client: &Client, args: SetArgs) -> Outcome {
    let patch = args.policy.patch();
    if patch.is_empty() {
        return Err(Failure::usage("nothing to change; name an option, such as --hsts-max-age 365d"));
    }
    patched(settings, client, &args.which, &Value::Object(patch), args.wait).await
}

pub(crate) async fn maintenance(settings: &Settings, client: &Client, args: MaintenanceArgs) -> Outcome {
    let wish = match args.end {
        true => Value::Null,
        false => json!({ "text": args.text, "retry_after_seconds": args.retry_after.as_secs() }),
    };
    patched(settings, client, &args.which, &json!({ "maintenance": wish }), args.wait).await
}

async fn patched(
    settings: &Settings,
    client: &Client,
    which: &DomainArgs,
    patch: &Value,
    wait: WaitArgs,
) -> Outcome {
    let changed = on_newest(async || {
        let found = which.find(client).await?;
        let patched = client.patch_domain(found.id, patch, Some(found.revision)).await;
        patched.map_err(|error| Failure::from(error).about(whose(&found)))
    });
    wait.show(settings, client, changed.await?).await
}
