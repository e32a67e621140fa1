//! `portico preview NAME`: try the site on an edge before DNS moves.

use portico_api::v1::ConditionStatus;

use crate::commands::named_domain::DomainArgs;
use crate::failure::Outcome;
use crate::output::{self, Format, line};
use crate::settings::Settings;

#[derive(Debug, clap::Args)]
pub(crate) struct PreviewArgs {
    #[command(flatten)]
    which: DomainArgs,
}

pub(crate) async fn run(settings: &Settings, args: PreviewArgs) -> Outcome {
    let client = settings.client()?;
    let domain = args.which.find(&client).await?;
    let mut preview = client.preview(domain.id).await?;
    // Curl knows the system's trust anchors only.
    if let Some(roots) = settings.roots_file() {
        for curl in &mut preview.curl_lines {
            if let Some(rest) = curl.strip_prefix("curl ").filter(|rest| !rest.contains("--cacert")) {
                *curl = format!("curl --cacert {} {rest}", roots.display());
            }
        }
    }
    if settings.format == Format::Json {
        return output::json(&preview);
    }
    line("# for /etc/hosts:");
    preview.hosts_lines.iter().for_each(line);
    line("# or at once:");
    preview.curl_lines.iter().for_each(line);
    if domain.proof.is_none() {
        line(format!(
            "# not yet: control of the name is not proved, so no edge serves it and these lines fail; see {} domain show {}",
            crate::invocation(),
            domain.id
        ));
    } else if domain.certificates.is_empty() {
        line(format!(
            "# not yet: there is no certificate for it, so https fails; see {} domain show {}",
            crate::invocation(),
            domain.id
        ));
    }
    line(match preview.dns_points_here {
        ConditionStatus::True => "# DNS already points here",
        ConditionStatus::False => "# DNS does not point here yet",
        ConditionStatus::Unknown => "# where DNS points has not been seen yet",
    });
    Ok(())
}
