//! Logs of containers as files, in the format of the CRI.

use std::path::{Path, PathBuf};

use futures::StreamExt;
use serde_json::json;
use skep_agent::kubelet::logs::Options;
use skep_agent::runtime::Runtime;

use crate::harness::{IMAGE, Node};

/// A file and what was rotated away from it, oldest first.
fn files(log: &Path) -> Vec<PathBuf> {
    let folder = log.parent().expect("a folder");
    let name = log.file_name().expect("a name").to_string_lossy();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| {
            path.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&*name))
        })
        .collect();
    // The file that is written has no suffix, and is the newest one.
    files.sort_by_key(|path| (path == log, path.clone()));
    files
}

fn texts(log: &Path) -> Vec<String> {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let all: String = files(log).into_iter().map(read).collect();
    all.lines().map(String::from).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_line_is_kept_once_whatever_restarts() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    let script = "i=0; while [ $i -lt 2500 ]; do echo line $i; i=$((i+1)); \
                  [ $((i % 50)) = 0 ] && sleep 0.05; done; printf end; sleep 0.2; exit 1";
    let uid = node.create(
        "writer",
        json!({"restartPolicy": "OnFailure", "containers": [{"name": "c", "image": IMAGE,
            "imagePullPolicy": "Never", "command": ["sh", "-c", script]}]}),
    );
    node.wait_phase("writer", "Running").await;
    for restarts in 0..3u32 {
        let log = node
            .log_dir()
            .join(format!("pods/default_writer_{uid}/c/0.log"));
        node.wait(&format!("some lines before restart {restarts}"), || {
            let lines = texts(&log).len();
            let enough = lines > 300 * (restarts as usize + 1);
            if enough {
                Ok(())
            } else {
                Err(lines.to_string())
            }
        })
        .await;
        node.restart().await;
    }
    let folder = node.log_dir().join(format!("pods/default_writer_{uid}/c"));
    let log = folder.join("0.log");
    node.wait("the end", || match texts(&log).last() {
        Some(line) if line.ends_with(" stdout P end") => Ok(()),
        last => Err(format!("{last:?}")),
    })
    .await;
    let lines = texts(&log);
    let wrong = lines.iter().enumerate().find(|(number, line)| {
        let text = format!(" stdout F line {number}");
        *number < 2500 && !line.ends_with(&text)
    });
    assert_eq!(wrong, None, "of {} lines", lines.len());
    assert_eq!(lines.len(), 2501);
    // 64 KiB a file, and a line of 30 to 50 bytes.
    assert!(files(&log).len() >= 2, "{:?}", files(&log));

    // `kubectl logs --previous --tail=2`, from where the files are; and the link that shippers look for.
    node.wait_pod("writer", "second start", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"] == 1
    })
    .await;
    let observed = node.docker.observe(&uid).await.expect("docker answers");
    let first = observed
        .iter()
        .find(|o| o.name == "c" && o.attempt == 0)
        .expect("it is still there");
    let ctx = node.ctx.clone().expect("runs");
    let options = Options {
        tail_lines: Some(2),
        ..Default::default()
    };
    let logs = ctx.logs.as_ref().expect("has logs");
    let pieces = logs.read(first, options).await;
    let pieces: Vec<_> = pieces.map(|piece| piece.expect("readable")).collect().await;
    assert_eq!(String::from_utf8_lossy(&pieces.concat()), "line 2499\nend");
    let link = format!("containers/writer_default_c-{}.log", first.id);
    let target = std::fs::read_link(node.log_dir().join(link)).expect("a link");
    assert_eq!(target, log);

    // The logs of a pod that is gone can be shipped for a while.
    node.delete("writer");
    node.wait_gone("writer").await;
    assert_eq!(texts(&log).len(), 2501);
    assert_eq!(node.containers().await, 0);
}

/// A file system of this size, mounted until it is dropped.
struct Small(PathBuf);

impl Small {
    fn mount(at: PathBuf, size: &str) -> Self {
        std::fs::create_dir_all(&at).expect("a folder");
        let options = format!("size={size}");
        nix::mount::mount(
            Some("tmpfs"),
            &at,
            Some("tmpfs"),
            nix::mount::MsFlags::empty(),
            Some(options.as_str()),
        )
        .expect("root mounts");
        Self(at)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_delays_lines_and_loses_none() {
    let Some(node) = Node::start().await else {
        return;
    };
    let small = Small::mount(node.log_dir(), "256k");
    let filler = small.0.join("filler");
    std::fs::write(&filler, vec![7; 220 << 10]).expect("there is room");
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; \
                  trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let uid = node.create(
        "writer",
        json!({"containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "Never",
            "command": ["sh", "-c", script]}]}),
    );
    node.wait_phase("writer", "Running").await;
    let log = node
        .log_dir()
        .join(format!("pods/default_writer_{uid}/c/0.log"));
    let free = || {
        let stat = nix::sys::statvfs::statvfs(&small.0).expect("mounted");
        stat.blocks_available()
    };
    node.wait("a full disk", || match free() {
        0 => Ok(()),
        left => Err(left.to_string()),
    })
    .await;
    assert!(texts(&log).len() < 2000);
    std::fs::remove_file(&filler).expect("it is there");
    node.wait("the last line", || match texts(&log).last() {
        Some(line) if line.ends_with(" stdout F line 1999") => Ok(()),
        last => Err(format!("{last:?}")),
    })
    .await;
    let lines = texts(&log);
    let wrong = lines.iter().enumerate().find(|(number, line)| {
        let text = format!(" stdout F line {number}");
        !line.ends_with(&text)
    });
    assert_eq!(wrong, None, "of {} lines", lines.len());
    assert_eq!(lines.len(), 2000);
    node.delete("writer");
    node.wait_gone("writer").await;
}
