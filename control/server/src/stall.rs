//! Ends connections to clients that do not read: what waits for them would wait for ever.
//!
//! HTTP/2 clients are asked with pings whether they live; one that speaks HTTP/1.1 is asked nothing, and a peer that is
//! alive and never reads keeps its TCP connection open without end: [`Guarded`]. A client that reads its HTTP/2 connection
//! and leaves one stream of it alone keeps that stream: [`Streams`].

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use hyper::body::{Body, Frame, SizeHint};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Sleep,
};

/// A stream whose writes fail once the peer has taken nothing for a while.
pub struct Guarded<S> {
    stream: S,
    patience: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
    released: Release,
}

/// Lets a stream wait as long as it likes: it belongs to somebody else now (an upgraded connection, whose user may have
/// stopped the output).
#[derive(Clone, Default)]
pub struct Release(Arc<AtomicBool>);

impl Release {
    pub fn release(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<S> Guarded<S> {
    pub fn new(stream: S, patience: Duration) -> (Self, Release) {
        let released = Release::default();
        let guarded = Self {
            stream,
            patience,
            waiting: None,
            released: released.clone(),
        };
        (guarded, released)
    }

    pub fn get_ref(&self) -> &S {
        &self.stream
    }

    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.waiting = None;
            return written;
        }
        if self.released.0.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let patience = self.patience;
        let waiting = self
            .waiting
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match waiting.as_mut().poll(context) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not read",
            ))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.watch(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = Pin::new(&mut self.stream).poll_shutdown(context);
        self.watch(context, shut)
    }
}

/// How far the body of a response has come. Only the task of its stream writes and reads it.
#[derive(Default)]
struct Progress {
    /// Data was handed out, and nobody has asked for more since: it does not fit into the stream's window.
    full: AtomicBool,
    /// How often somebody has asked.
    asked: AtomicU32,
}

tokio::task_local! {
    static PROGRESS: Arc<Progress>;
}

/// Runs the streams of HTTP/2 connections. A stream is cut once its client has taken nothing of what is there for it for a
/// while; one for which there is nothing may stay as it is.
#[derive(Clone, Copy)]
pub struct Streams {
    pub patience: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        let patience = self.patience;
        tokio::spawn(async move {
            let mut stream = std::pin::pin!(stream);
            let progress = Arc::new(Progress::default());
            // Since when, counted in questions, nothing was taken.
            let mut waiting: Option<(u32, Pin<Box<Sleep>>)> = None;
            let ended = std::future::poll_fn(|context| {
                let poll = || stream.as_mut().poll(context);
                if PROGRESS.sync_scope(progress.clone(), poll).is_ready() {
                    return Poll::Ready(());
                }
                let asked = progress.asked.load(Ordering::Relaxed);
                if !progress.full.load(Ordering::Relaxed) {
                    waiting = None;
                    return Poll::Pending;
                }
                waiting.take_if(|(since, _)| *since != asked);
                let (_, over) =
                    waiting.get_or_insert_with(|| (asked, Box::pin(tokio::time::sleep(patience))));
                over.as_mut().poll(context)
            });
            ended.await;
        });
    }
}

/// A body that tells [`Streams`] how far it has come.
pub struct Told<B>(pub B);

impl<B: Body + Unpin> Body for Told<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let polled = Pin::new(&mut self.0).poll_frame(context);
        let full = matches!(&polled, Poll::Ready(Some(Ok(frame))) if frame.is_data());
        // HTTP/1.1 has no streams.
        let _told = PROGRESS.try_with(|progress| {
            progress.full.store(full, Ordering::Relaxed);
            progress.asked.fetch_add(1, Ordering::Relaxed);
        });
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}
