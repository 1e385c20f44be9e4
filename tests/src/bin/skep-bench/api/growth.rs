//! How each figure grows from 1,000 to 100,000 objects, and what 50,000 pods take.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Result;
use serde_json::json;
use xtask::cluster::Store;

use super::load::{Request, Samples, Until, load};
use super::server::Server;
use super::{BENCH, ROUND, config_map, gets, namespace};
use crate::Figure;

const SIZES: [usize; 3] = [1_000, 10_000, 100_000];
const PAGE: usize = 500;
const PODS: usize = 50_000;

pub(super) async fn measure(store: Store) -> Result<Vec<Figure>> {
    let mut figures = objects(store).await?;
    figures.push(pods(store).await?);
    Ok(figures)
}

async fn objects(store: Store) -> Result<Vec<Figure>> {
    let server = Server::start(store)?;
    let mut connection = server.connect(true).await?;
    for name in ["bench", "more"] {
        namespace(&mut connection, name).await?;
    }
    let names = Arc::new(AtomicUsize::new(0));
    let mut samples = Samples::default();
    let mut memory = Vec::new();
    for size in SIZES {
        let next = Arc::clone(&names);
        load(&server, true, Until::Done, move || {
            let name = next.fetch_add(1, Ordering::Relaxed);
            (name < size).then(|| Request::create(BENCH, config_map(&format!("o{name}"))))
        })
        .await?;
        names.store(size, Ordering::Relaxed);
        // The creates go elsewhere, so that what is listed and got stays the same.
        let next = AtomicUsize::new(0);
        let creates = load(&server, true, ROUND, move || {
            let name = format!("s{size}-{}", next.fetch_add(1, Ordering::Relaxed));
            let path = "/api/v1/namespaces/more/configmaps";
            Some(Request::create(path, config_map(&name)))
        });
        samples.add(&format!("create with {size} objects"), &creates.await?);
        let gets = load(&server, true, ROUND, gets(size)).await?;
        samples.add(&format!("get with {size} objects"), &gets);
        let page = format!("{BENCH}?limit={PAGE}");
        let lists = load(&server, true, ROUND, move || Some(Request::get(&*page)));
        samples.add(
            &format!("list of a page of {PAGE} with {size} objects"),
            &lists.await?,
        );
        memory.push(Figure::of(
            format!("memory of skep-control --roles api with {size} objects and more"),
            "MiB",
            vec![server.memory_mib()?],
        )?);
    }
    let mut figures = samples.figures()?;
    figures.extend(memory);
    Ok(figures)
}

async fn pods(store: Store) -> Result<Figure> {
    let server = Server::start(store)?;
    let mut connection = server.connect(true).await?;
    namespace(&mut connection, "pods").await?;
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "default", "namespace": "pods"},
    });
    let path = "/api/v1/namespaces/pods/serviceaccounts";
    connection
        .send("POST", path, Some(account.to_string().as_bytes()))
        .await?;
    let next = AtomicUsize::new(0);
    load(&server, true, Until::Done, move || {
        let number = next.fetch_add(1, Ordering::Relaxed);
        (number < PODS).then(|| Request::create("/api/v1/namespaces/pods/pods", pod(number)))
    })
    .await?;
    Figure::of(
        format!("memory of skep-control --roles api with {PODS} pods"),
        "MiB",
        vec![server.memory_mib()?],
    )
}

fn pod(number: usize) -> Vec<u8> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("web-{number}"),
            "labels": {"app": "web", "pod-template-hash": "7c5ddbdf54"},
        },
        "spec": {"containers": [{
            "name": "web", "image": "skep.local/nginx:1",
            "ports": [{"containerPort": 80}],
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
        }]},
    });
    pod.to_string().into_bytes()
}
