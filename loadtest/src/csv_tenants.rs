//! A CSV for `portico domain import`: tenants as a hosting provider has them.
//!
//! 80 % of the tenants have one domain with its `www` twin, 19 % have 2 to 10 domains, 1 % more than 100.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const DOMAINS_MAX: usize = 1_000_000;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TenantsArgs {
    /// Rows to make; each is one hostname.
    #[arg(long, default_value_t = 2000)]
    domains: usize,
    /// The origin that every row is proxied to.
    #[arg(long, default_value = "http://127.0.0.1:9000")]
    origin: String,
    /// The same seed makes the same file.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[arg(long)]
    out: PathBuf,
}

/// Writes the file with the header `tenant,hostname,action,target,sharing`.
pub(crate) fn run(args: &TenantsArgs) -> Result<()> {
    if args.domains == 0 || args.domains > DOMAINS_MAX {
        bail!("--domains {}: between 1 and {DOMAINS_MAX}", args.domains);
    }
    let mut writer =
        csv::Writer::from_path(&args.out).with_context(|| format!("write {}", args.out.display()))?;
    writer.write_record(["tenant", "hostname", "action", "target", "sharing"])?;
    let mut random = StdRng::seed_from_u64(args.seed);
    let mut rows = 0;
    let mut tenants = 0;
    while rows < args.domains {
        let tenant = format!("tenant-{tenants:05}");
        // Large tenants share within themselves, as their operator would opt in; small ones keep the default.
        let (domains, sharing) = match tenants % 100 {
            7 => (random.random_range(101..=180), "tenant"),
            n if n % 5 == 1 => (random.random_range(2..=10), "registered_domain"),
            _ => (1, "registered_domain"),
        };
        for domain in 0..domains {
            for host in [String::new(), "www.".to_owned()] {
                if rows == args.domains {
                    break;
                }
                let hostname = format!("{host}site-{domain}-of-{tenants:05}.test");
                writer.write_record([&tenant, &hostname, "proxy", &args.origin, sharing])?;
                rows += 1;
            }
        }
        tenants += 1;
    }
    writer.flush()?;
    println!("{rows} hostnames of {tenants} tenants in {}", args.out.display());
    Ok(())
}
