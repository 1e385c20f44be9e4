use std::fs;
use std::path::PathBuf;

use futures::StreamExt;

use super::super::chain::Suffix;
use super::*;

/// Two files of one log: six lines, the fourth in two pieces, the last without its end.
fn log() -> (tempfile::TempDir, Chain) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let line = |n: u32, stream: &str, tag: &str, text: &str| {
        format!("2026-01-01T00:00:0{n}.000000000Z {stream} {tag} {text}\n")
    };
    let old = [
        line(1, "stdout", "F", "one"),
        line(2, "stderr", "F", "two"),
        line(3, "stdout", "F", ""),
    ];
    let new = [
        line(4, "stdout", "P", "fo"),
        line(4, "stdout", "F", "ur"),
        line(5, "stdout", "F", "five"),
        line(6, "stdout", "P", "six"),
    ];
    let rotated = PathBuf::from(format!("{}.20260101-000003", path.display()));
    fs::write(rotated, old.concat()).unwrap();
    fs::write(&path, new.concat()).unwrap();
    let suffix = Suffix::Time;
    (dir, Chain { path, suffix })
}

async fn read(chain: &Chain, options: Options) -> String {
    let (_keep, progress) = watch::channel(Progress::default());
    let pieces = stream(chain.clone(), options, progress);
    let pieces: Vec<_> = pieces.map(|piece| piece.unwrap()).collect().await;
    String::from_utf8(pieces.concat()).unwrap()
}

#[tokio::test]
async fn every_option_of_kubectl_logs() {
    let (_dir, chain) = log();
    let all = "one\ntwo\n\nfour\nfive\nsix";
    assert_eq!(read(&chain, Options::default()).await, all);
    for (lines, expected) in [
        (0, ""),
        (1, "six"),
        (2, "five\nsix"),
        (3, "four\nfive\nsix"),
        (4, "\nfour\nfive\nsix"),
        (5, "two\n\nfour\nfive\nsix"),
        (6, all),
        (60, all),
    ] {
        let options = Options {
            tail_lines: Some(lines),
            ..Default::default()
        };
        assert_eq!(read(&chain, options).await, expected, "{lines} lines");
    }
    let options = Options {
        since: Some("2026-01-01T00:00:05Z".parse().unwrap()),
        ..Default::default()
    };
    assert_eq!(read(&chain, options).await, "five\nsix");
    let options = Options {
        limit_bytes: Some(10),
        ..Default::default()
    };
    assert_eq!(read(&chain, options).await, "one\ntwo\n\nf");
    let options = Options {
        stream: Some(OutputStream::Stderr),
        timestamps: true,
        ..Default::default()
    };
    assert_eq!(
        read(&chain, options).await,
        "2026-01-01T00:00:02.000000000Z two\n"
    );
    let options = Options {
        timestamps: true,
        tail_lines: Some(3),
        ..Default::default()
    };
    assert_eq!(
        read(&chain, options).await,
        "2026-01-01T00:00:04.000000000Z four\n2026-01-01T00:00:05.000000000Z five\n\
         2026-01-01T00:00:06.000000000Z six"
    );
}

#[tokio::test]
async fn a_long_log_is_read_from_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("0.log");
    let line = |n: usize| format!("2026-01-01T00:00:00.000000000Z stdout F {n:01000}\n");
    fs::write(&path, (0..500).map(line).collect::<String>()).unwrap();
    let chain = Chain {
        path,
        suffix: Suffix::Time,
    };
    let options = Options {
        tail_lines: Some(200),
        ..Default::default()
    };
    let text = read(&chain, options).await;
    let numbers: Vec<usize> = text.lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(numbers, (300..500).collect::<Vec<_>>());
}

#[tokio::test]
async fn following_goes_on_over_a_rotation_until_the_end() {
    let (_dir, chain) = log();
    let (writer, progress) = watch::channel(Progress::default());
    let options = Options {
        follow: true,
        tail_lines: Some(1),
        ..Default::default()
    };
    let mut pieces = Box::pin(stream(chain.clone(), options, progress));
    assert_eq!(pieces.next().await.unwrap().unwrap(), "six");
    fs::rename(
        &chain.path,
        format!("{}.20260101-000006", chain.path.display()),
    )
    .unwrap();
    fs::write(&chain.path, "2026-01-01T00:00:07.000000000Z stdout F .\n").unwrap();
    writer.send_modify(|p| p.copies += 1);
    assert_eq!(pieces.next().await.unwrap().unwrap(), ".\n");
    writer.send_modify(|p| p.ended = true);
    assert!(pieces.next().await.is_none());
}
