//! Removes images that nothing uses when the disk that holds them fills up.
//!
//! Upstream's `pkg/kubelet/images/image_gc_manager.go`: above the high threshold the images used longest ago go, until
//! the low one is reached. An image that came from no registry could not be had again: it stays.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::usage::{self, Level};
use super::{Context, node};
use crate::runtime::{Image, RuntimeError};

const PERIOD: Duration = Duration::from_secs(300);
/// An image that was pulled just now is about to be used.
const MIN_AGE: SignedDuration = SignedDuration::from_secs(120);

/// Percent of the disk in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// 100: never.
    pub high: u8,
    pub low: u8,
}

/// What is remembered of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    seen_at: Timestamp,
    used_at: Timestamp,
}

#[derive(Debug, Default)]
struct Records(HashMap<String, Record>);

impl Records {
    /// Takes in which images there are and which of them are in use.
    fn observe(&mut self, images: &[Image], used: &HashSet<String>, now: Timestamp) {
        let present: HashSet<&str> = images.iter().map(|i| i.id.as_str()).collect();
        self.0.retain(|id, _| present.contains(id.as_str()));
        for image in images {
            let record = self.0.entry(image.id.clone()).or_insert(Record {
                seen_at: now,
                used_at: Timestamp::UNIX_EPOCH,
            });
            if used.contains(&image.id) {
                record.used_at = now;
            }
        }
    }

    /// The images to remove so that `bytes` are freed, and how many bytes that would be.
    fn plan<'a>(&self, images: &'a [Image], bytes: u64, now: Timestamp) -> (Vec<&'a Image>, u64) {
        let free = |image: &&Image| {
            self.0.get(&image.id).is_some_and(|record| {
                record.used_at < now
                    && now.duration_since(record.seen_at) >= MIN_AGE
                    && !image.digests.is_empty()
            })
        };
        let mut unused: Vec<&Image> = images.iter().filter(free).collect();
        unused.sort_by_key(|image| {
            let record = self.0.get(&image.id);
            record.map(|r| (r.used_at, r.seen_at, image.id.as_str()))
        });
        let mut freed = 0;
        let chosen = unused.into_iter().take_while(|image| {
            let more = freed < bytes;
            if more {
                freed += u64::try_from(image.size_bytes).unwrap_or(0);
            }
            more
        });
        let chosen: Vec<&Image> = chosen.collect();
        (chosen, freed)
    }
}

/// How much is to be freed.
fn excess(level: Level, thresholds: Thresholds) -> u64 {
    if level.capacity == 0 || thresholds.high >= 100 {
        return 0;
    }
    let used = level.capacity.saturating_sub(level.available);
    let percent = u128::from(used) * 100 / u128::from(level.capacity);
    if percent < u128::from(thresholds.high) {
        return 0;
    }
    let goal = u128::from(level.capacity) * u128::from(100 - thresholds.low.min(100)) / 100;
    u64::try_from(goal)
        .unwrap_or(u64::MAX)
        .saturating_sub(level.available)
}

/// Looks every five minutes until `stop`.
pub async fn run(ctx: Arc<Context>, thresholds: Thresholds, stop: CancellationToken) {
    let mut records = Records::default();
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut root: Option<PathBuf> = None;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        if root.is_none() {
            root = ctx.runtime.image_root().await;
        }
        let Some(root) = &root else { continue };
        if let Err(e) = collect(&ctx, &mut records, root, thresholds).await {
            debug!(error = %e, "cannot look at the images; will retry");
        }
    }
}

async fn collect(
    ctx: &Context,
    records: &mut Records,
    root: &Path,
    thresholds: Thresholds,
) -> Result<(), RuntimeError> {
    let images = ctx.runtime.images().await?;
    let used = ctx.runtime.list().await?;
    let used: HashSet<String> = used.into_iter().map(|c| c.image_id).collect();
    let now = Timestamp::now();
    records.observe(&images, &used, now);
    let Some((level, _)) = usage::disk(root) else {
        return Ok(());
    };
    let wanted = excess(level, thresholds);
    if wanted == 0 {
        return Ok(());
    }
    let (chosen, planned) = records.plan(&images, wanted, now);
    info!(
        images = chosen.len(),
        bytes = planned,
        wanted,
        "the images' disk is full: removing what nothing uses"
    );
    let freed = remove(ctx, &chosen).await;
    if freed < wanted {
        let message = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found {freed} bytes eligible to free."
        );
        warn!(wanted, freed, "too few images could be removed");
        let about = node::reference(&ctx.config.node_name);
        ctx.recorder.warning(&about, "FreeDiskSpaceFailed", message);
    }
    Ok(())
}

/// Removes images one by one; the bytes that this has freed.
async fn remove(ctx: &Context, chosen: &[&Image]) -> u64 {
    let mut freed = 0;
    for image in chosen {
        let names = image.tags.iter().chain(&image.digests);
        let names: Vec<&String> = names.collect();
        let mut removed = true;
        // The last name takes the image with it.
        for name in names {
            match ctx.runtime.remove_image(name).await {
                Ok(()) | Err(RuntimeError::NotFound(_)) => {}
                Err(e) => {
                    // Another agent's container may use it.
                    debug!(image = name, error = %e, "an image stays");
                    removed = false;
                    break;
                }
            }
        }
        if removed {
            freed += u64::try_from(image.size_bytes).unwrap_or(0);
        }
    }
    freed
}

/// Removes every image that could be had again and that no container uses: the disk is short.
pub async fn remove_unused(ctx: &Context) {
    let found = async {
        let images = ctx.runtime.images().await?;
        Ok::<_, RuntimeError>((images, ctx.runtime.list().await?))
    };
    let (images, containers) = match found.await {
        Ok(found) => found,
        Err(e) => return debug!(error = %e, "cannot look at the images; will retry"),
    };
    let used: HashSet<String> = containers.into_iter().map(|c| c.image_id).collect();
    let unused: Vec<&Image> = images
        .iter()
        .filter(|image| !used.contains(&image.id) && !image.digests.is_empty())
        .collect();
    let freed = remove(ctx, &unused).await;
    if freed > 0 {
        info!(bytes = freed, "the disk is short: removed unused images");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds).unwrap()
    }

    fn image(id: &str, size_bytes: i64) -> Image {
        Image {
            id: id.into(),
            digests: vec![format!("r/{id}@sha256:0")],
            size_bytes,
            ..Default::default()
        }
    }

    #[test]
    fn frees_down_to_the_low_threshold() {
        let thresholds = Thresholds { high: 85, low: 80 };
        let level = |available| Level {
            available,
            capacity: 1000,
        };
        assert_eq!(excess(level(151), thresholds), 0);
        assert_eq!(excess(level(150), thresholds), 50);
        assert_eq!(excess(level(0), thresholds), 200);
        assert_eq!(excess(level(0), Thresholds { high: 100, low: 80 }), 0);
        assert_eq!(excess(Level::default(), thresholds), 0);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut local = image("local", 500);
        local.digests.clear();
        let images = [
            image("used", 10),
            image("old", 10),
            image("older", 10),
            image("never", 10),
            local,
        ];
        let used = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect();
        let mut records = Records::default();
        records.observe(&images, &used(&["older", "old", "used"]), at(0));
        records.observe(&images, &used(&["old", "used"]), at(60));
        records.observe(&images, &used(&["used"]), at(200));
        let ids = |bytes| {
            let (chosen, freed) = records.plan(&images, bytes, at(200));
            let ids: Vec<&str> = chosen.into_iter().map(|i| i.id.as_str()).collect();
            (ids, freed)
        };
        assert_eq!(ids(0), (vec![], 0));
        assert_eq!(ids(15), (vec!["never", "older"], 20));
        // Neither what is in use nor what could not be pulled again.
        assert_eq!(ids(1000), (vec!["never", "older", "old"], 30));
    }

    #[test]
    fn a_new_image_is_left_alone_and_a_gone_one_forgotten() {
        let mut records = Records::default();
        records.observe(&[image("a", 1)], &HashSet::new(), at(0));
        assert!(records.plan(&[image("a", 1)], 1, at(119)).0.is_empty());
        assert_eq!(records.plan(&[image("a", 1)], 1, at(120)).0.len(), 1);
        records.observe(&[], &HashSet::new(), at(130));
        assert!(records.0.is_empty());
    }
}
