//! A container's log as a stream of lines.

use bollard::Docker;
use bollard::container::LogOutput;
use bollard::query_parameters as query;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;

use super::answers::error;
use crate::runtime::{BoxStream, LogEntry, LogOptions, OutputStream, Result};

pub(super) fn read(docker: Docker, id: &str, options: &LogOptions) -> BoxStream<Result<LogEntry>> {
    let mut query = query::LogsOptionsBuilder::new()
        .follow(options.follow)
        .stdout(true)
        .stderr(true)
        .timestamps(true);
    if let Some(since) = options.since {
        query = query.since(since.as_second().clamp(0, i64::from(i32::MAX)) as i32);
    }
    query = match options.tail_lines {
        Some(lines) => query.tail(&lines.to_string()),
        None => query.tail("all"),
    };
    let id = id.to_string();
    let query = query.build();
    let stream = async_stream(move |send| async move {
        let mut logs = Box::pin(docker.logs(&id, Some(query)));
        let mut console = BytesMut::new();
        while let Some(item) = logs.next().await {
            let entries = match item {
                Ok(LogOutput::StdErr { message }) => {
                    vec![log_entry(OutputStream::Stderr, message)]
                }
                Ok(LogOutput::StdOut { message } | LogOutput::StdIn { message }) => {
                    vec![log_entry(OutputStream::Stdout, message)]
                }
                // With a terminal there are no frames: cut at the newlines.
                Ok(LogOutput::Console { message }) => {
                    console.extend_from_slice(&message);
                    let mut lines = Vec::new();
                    while let Some(end) = console.iter().position(|b| *b == b'\n') {
                        let line = console.split_to(end + 1).freeze();
                        lines.push(log_entry(OutputStream::Stdout, line));
                    }
                    lines
                }
                Err(e) => {
                    let _ = send.send(Err(error(e))).await;
                    return;
                }
            };
            for entry in entries {
                if send.send(Ok(entry)).await.is_err() {
                    return;
                }
            }
        }
        if !console.is_empty() {
            let _ = send
                .send(Ok(log_entry(OutputStream::Stdout, console.freeze())))
                .await;
        }
    });
    Box::pin(stream)
}

/// A stream fed by a task that ends with its reader.
pub(super) fn async_stream<T, F, Fut>(produce: F) -> tokio_stream::wrappers::ReceiverStream<T>
where
    T: Send + 'static,
    F: FnOnce(tokio::sync::mpsc::Sender<T>) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let (send, receive) = tokio::sync::mpsc::channel(64);
    let closed = send.clone();
    let work = produce(send);
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            () = closed.closed() => {}
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receive)
}

/// Every piece begins with its time and a space.
fn log_entry(stream: OutputStream, mut bytes: Bytes) -> LogEntry {
    let at = match bytes.iter().take(40).position(|b| *b == b' ') {
        Some(end) => {
            let at = String::from_utf8_lossy(&bytes[..end]).into_owned();
            let _ = bytes.split_to(end + 1);
            at
        }
        None => String::new(),
    };
    LogEntry { at, stream, bytes }
}
