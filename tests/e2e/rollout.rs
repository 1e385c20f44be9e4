//! Updates that nobody notices.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::json;
use skep_tests::load::{Connections, Load, wait_until_answers};
use skep_tests::wait::wait_for;
use xtask::cluster::images::NGINX_NEXT;

use crate::Story;
use crate::manifests::{deployment, service};

pub(crate) fn under_load(story: &Story<'_>) -> Result<()> {
    story.apply(&[
        deployment("web", 4),
        service("web", "web", json!({"type": "NodePort"})),
    ])?;
    let before = story.ready_pods("web", 4)?;
    story.backends("web", 4)?;
    let cluster_ip = story.cluster_ip("web")?;
    let node = story.cluster.node("node1")?;
    let through_service = format!("{cluster_ip}:80");
    let through_node_port = format!("{}:{}", node.address, story.node_port("web")?);
    wait_until_answers(&node.place(), &through_service)?;
    wait_until_answers(&story.cluster.state.outside(), &through_node_port)?;

    let loads = [
        (
            "through the ClusterIP",
            Load::new(node.place(), &through_service, Connections::New),
        ),
        (
            "over kept connections",
            Load::new(node.place(), &through_service, Connections::KeepAlive),
        ),
        (
            "through the NodePort",
            Load::new(
                story.cluster.state.outside(),
                &through_node_port,
                Connections::New,
            ),
        ),
    ];
    let running = loads
        .iter()
        .map(|(what, load)| Ok((*what, load.start()?)))
        .collect::<Result<Vec<_>>>()?;
    story.kubectl.expect(
        &[
            "set",
            "image",
            "deployment/web",
            &format!("nginx={NGINX_NEXT}"),
        ],
        "image updated",
    )?;
    story.kubectl.expect(
        &["rollout", "status", "deployment/web", "--timeout=120s"],
        "successfully rolled out",
    )?;
    let after = story.ready_pods("web", 4)?;
    for (what, load) in running {
        load.stop()?
            .ensure_no_failures(&format!("the rolling update, {what}"))?;
    }
    for pod in &after {
        ensure!(
            before
                .iter()
                .all(|old| old["metadata"]["uid"] != pod["metadata"]["uid"]),
            "{} is an old pod",
            pod["metadata"]["name"]
        );
    }
    wait_for(
        "only the new version to answer",
        Duration::from_secs(10),
        || {
            let page = node
                .place()
                .program(skep_tests::cluster::xtask_binary()?)?
                .args(["fetch", &through_service])
                .output()?;
            ensure!(page.contains("nginx version 2"), "{page}");
            Ok(())
        },
    )
}
