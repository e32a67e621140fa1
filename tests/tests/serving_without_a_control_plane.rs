//! P2: edges serve all they served with the control plane dead, its folder deleted, and after their own kill -9.

use anyhow::Result;
use portico_api::v1::Sharing;
use portico_tests::{Lab, LabOptions, ask};

#[tokio::test]
async fn an_edge_killed_and_restarted_without_a_control_plane_serves_every_name() -> Result<()> {
    let mut lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::Tenant, &[]).await?;
    let names: Vec<String> = (0..30).map(|n| format!("site-{n}.test")).collect();
    for name in &names {
        lab.domain(&tenant, name).await?;
    }
    for name in &names {
        lab.active(name).await?;
    }
    lab.control_plane.kill();
    lab.kill_ca();
    std::fs::remove_dir_all(lab.folder.path().join("control-plane"))?;
    for at in 0..lab.edges.len() {
        lab.edges[at].process.kill();
        lab.restart_edge(at).await;
        for name in &names {
            let answer = ask(lab.edges[at].https, name, "/", &lab.issuing_root).await?;
            assert_eq!(answer.status, 200, "{name}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_control_plane_killed_in_the_middle_finishes_its_work_after_restart() -> Result<()> {
    let mut lab = Lab::start(LabOptions::default()).await?;
    let tenant = lab.tenant("acme-corp", Sharing::RegisteredDomain, &[]).await?;
    let names: Vec<String> = (0..10).map(|n| format!("shop-{n}.test")).collect();
    for (at, name) in names.iter().enumerate() {
        lab.domain(&tenant, name).await?;
        if at % 3 == 0 {
            lab.control_plane.kill();
            lab.restart_control_plane().await;
        }
    }
    for name in &names {
        lab.active(name).await?;
        ask(lab.edges[0].https, name, "/", &lab.issuing_root).await?;
    }
    let stats = lab.ca_stats().await?;
    println!("CA after {} names and 4 kills: {stats}", names.len());
    Ok(())
}
