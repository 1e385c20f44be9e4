//! watch: a stream of frames, each encoded once for all who watch the same thing in the same form.

use std::{
    convert::Infallible,
    fmt::Write,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::{body::Body, response::Response};
use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, future::BoxFuture};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior, Sleep};

use super::{read::revision, selection::Selection};
use crate::{
    cache::{Entry, Event, EventKind, Gone, Watch, WatchFrom, WatchItem, WatchRequest},
    codec,
    context::{Api, Ctx},
    crd::conversion,
    negotiate::{Encoding, Output, Transform},
    options::{ListOptions, Query},
    registry::Resource,
    respond::Rendering,
    status::{Failure, Result},
    websocket,
};

/// Watches without `timeoutSeconds` end after this or up to twice this, so that clients do not all return at once.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// A last bookmark goes out this long before the end.
const LAST_BOOKMARK: Duration = Duration::from_secs(2);

pub async fn watch(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    Rendering::of_watch(&ctx.query, resource, out)?;
    let options = ListOptions::parse(&ctx.query, true)?;
    let selection = Selection::new(ctx, resource, &options)?;
    let storage = &ctx.api.storage;
    let from = match options.resource_version.as_str() {
        "" => {
            storage.fresh().await?;
            WatchFrom::InitialEvents
        }
        "0" => WatchFrom::InitialEvents,
        version => {
            let wanted = revision(version)?;
            storage.wait_until(wanted).await?;
            WatchFrom::After(wanted)
        }
    };
    let from = match (options.send_initial_events, from) {
        (Some(true), _) => WatchFrom::InitialEvents,
        (Some(false), WatchFrom::InitialEvents) => WatchFrom::Now,
        (_, from) => from,
    };
    let watch = storage.cache.watch(WatchRequest {
        prefix: selection.prefix.clone(),
        from,
        field: selection.route(),
    });
    let timeout = match options.timeout_seconds {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds),
        _ => DEFAULT_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()),
    };
    let frames = Frames {
        renderer: Renderer::new(ctx, resource.clone(), out),
        selection,
        bookmarks: options.allow_bookmarks.then(Bookmarks::new),
        mark_initial_end: options.send_initial_events == Some(true) && options.allow_bookmarks,
        deadline: Box::pin(tokio::time::sleep(timeout)),
        last_bookmark: timeout
            .checked_sub(LAST_BOOKMARK)
            .map(|d| Box::pin(tokio::time::sleep(d))),
        state: match watch {
            Ok(watch) => State::Running(watch),
            Err(gone) => State::Failed(gone),
        },
        shutdown: ctx.api.readiness.draining(),
        api: ctx.api.clone(),
        converting: None,
    };
    let mut response = Response::new(Body::from_stream(frames));
    *response.status_mut() = StatusCode::OK;
    let content_type = match out.encoding {
        Encoding::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        _ => "application/json",
    };
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, private"),
    );
    match websocket::is_asked(&ctx.headers) {
        true => websocket::events(ctx, response),
        false => Ok(response),
    }
}

/// What turns a change into bytes; owned by the stream, as it outlives the request's handler.
struct Renderer {
    resource: Arc<Resource>,
    out: Output,
    /// Table columns come with the first event.
    first: bool,
    query: Query,
    /// Names this form among all forms of one event.
    form: String,
}

impl Renderer {
    fn new(ctx: &Ctx, resource: Arc<Resource>, out: Output) -> Self {
        let mut form = String::new();
        // Writing to a string cannot fail.
        let _written = write!(
            form,
            "{:?} {:?} {} {}",
            out.encoding, out.transform, out.beta, resource.api_version
        );
        Self {
            resource,
            out,
            first: true,
            query: ctx.query.clone(),
            form,
        }
    }

    fn rendering(&self) -> Option<Rendering<'_>> {
        Rendering::of_watch(&self.query, &self.resource, self.out).ok()
    }

    fn event(&mut self, kind: EventKind, event: &Event, entry: &Entry) -> Bytes {
        let shared = self.out.transform != Transform::Table;
        if shared {
            let name = format!("{} {}", kind.as_str(), self.form);
            return event.frame(&name, || self.frame(kind.as_str(), &entry.bytes()));
        }
        self.frame_of_entry(kind, entry)
    }

    fn frame_of_entry(&mut self, kind: EventKind, entry: &Entry) -> Bytes {
        let frame = self.frame(kind.as_str(), &entry.bytes());
        self.first = false;
        frame
    }

    fn frame(&self, kind: &str, bytes: &Bytes) -> Bytes {
        let Some(rendering) = self.rendering() else {
            return Bytes::new();
        };
        if self.out.encoding == Encoding::Protobuf && self.out.transform == Transform::None {
            let value = rendering.value(bytes);
            if let Some(frame) = self.protobuf(kind, &value) {
                return frame;
            }
        }
        json_frame(kind, &rendering.event_object(bytes, self.first))
    }

    fn protobuf(&self, kind: &str, value: &Value) -> Option<Bytes> {
        let api_version = value["apiVersion"].as_str()?;
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let schema = skep_schema::builtin(group, version, value["kind"].as_str()?)?;
        let frame = skep_schema::protobuf::encode_watch_frame(kind, value, &schema);
        frame.ok().map(Bytes::from)
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) -> Bytes {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = json!({
            "kind": self.resource.def.kind, "apiVersion": self.resource.api_version,
            "metadata": metadata,
        });
        if self.out.encoding == Encoding::Protobuf
            && self.out.transform == Transform::None
            && let Some(frame) = self.protobuf("BOOKMARK", &object)
        {
            return frame;
        }
        let bytes = codec::encode_object(&object);
        let Some(rendering) = self.rendering() else {
            return Bytes::new();
        };
        let object = match self.out.transform {
            Transform::None => bytes,
            _ => rendering.event_object(&bytes, self.first),
        };
        self.first = false;
        json_frame("BOOKMARK", &object)
    }

    fn error(&self, failure: &Failure) -> Bytes {
        let status = failure.to_value();
        if self.out.encoding == Encoding::Protobuf
            && let Some(frame) = self.protobuf("ERROR", &status)
        {
            return frame;
        }
        json_frame("ERROR", &codec::encode_object(&status))
    }
}

fn json_frame(kind: &str, object: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(object.len() + kind.len() + 24);
    for part in [
        b"{\"type\":\"",
        kind.as_bytes(),
        b"\",\"object\":",
        object,
        b"}\n",
    ] {
        frame.extend_from_slice(part);
    }
    frame.freeze()
}

struct Bookmarks {
    interval: Interval,
    sent: u64,
}

impl Bookmarks {
    fn new() -> Self {
        let start = Instant::now() + BOOKMARK_INTERVAL;
        let mut interval = tokio::time::interval_at(start, BOOKMARK_INTERVAL);
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { interval, sent: 0 }
    }
}

enum State {
    Running(Watch),
    Failed(Gone),
    Ended,
}

/// The body of a watch.
struct Frames {
    renderer: Renderer,
    selection: Selection,
    bookmarks: Option<Bookmarks>,
    mark_initial_end: bool,
    deadline: Pin<Box<Sleep>>,
    last_bookmark: Option<Pin<Box<Sleep>>>,
    state: State,
    /// Ends all watches when the server drains.
    shutdown: Pin<Box<dyn Future<Output = ()> + Send>>,
    api: Arc<Api>,
    /// A custom object on its way into the row's form, before anything after it is looked at.
    converting: Option<Converting>,
}

struct Converting {
    kind: EventKind,
    entry: BoxFuture<'static, Result<Vec<Arc<Entry>>>>,
}

/// What a watcher sees of an item.
enum Shown {
    Nothing,
    InitialEnd(u64),
    Entry(EventKind, Arc<Entry>, Option<Arc<Event>>),
}

impl Frames {
    /// What a watcher with these selectors sees of an item.
    fn show(&self, item: WatchItem) -> Shown {
        let event = match item {
            WatchItem::Initial(entry) if self.selection.matches(&entry) => {
                return Shown::Entry(EventKind::Added, entry, None);
            }
            WatchItem::Initial(_) => return Shown::Nothing,
            WatchItem::InitialEnd(revision) if self.mark_initial_end => {
                return Shown::InitialEnd(revision);
            }
            WatchItem::InitialEnd(_) => return Shown::Nothing,
            WatchItem::Event(event) => event,
        };
        let now = self.selection.matches(&event.entry);
        let before = event.previous.as_ref();
        let before = before.is_some_and(|previous| self.selection.matches(previous));
        let kind = match (event.kind, before, now) {
            (EventKind::Deleted, true, _) => EventKind::Deleted,
            (EventKind::Deleted, false, _) | (_, false, false) => return Shown::Nothing,
            (_, false, true) => EventKind::Added,
            (_, true, true) => EventKind::Modified,
            (_, true, false) => {
                return match event.left().cloned() {
                    Some(left) => Shown::Entry(EventKind::Deleted, left, Some(event)),
                    None => Shown::Nothing,
                };
            }
        };
        Shown::Entry(kind, event.entry.clone(), Some(event))
    }

    /// The frame of an item, or the beginning of its conversion.
    fn take(&mut self, item: WatchItem) -> Option<Bytes> {
        match self.show(item) {
            Shown::Nothing => None,
            Shown::InitialEnd(revision) => Some(self.renderer.bookmark(revision, true)),
            Shown::Entry(kind, entry, event) => {
                let resource = &self.renderer.resource;
                let form = resource.stored_form.as_ref();
                if form.is_some_and(|form| !form.shows(resource, &entry)) {
                    let (api, resource) = (self.api.clone(), resource.clone());
                    self.converting = Some(Converting {
                        kind,
                        entry: Box::pin(async move {
                            conversion::present(&api, &resource, vec![entry]).await
                        }),
                    });
                    return None;
                }
                Some(match event {
                    Some(event) => self.renderer.event(kind, &event, &entry),
                    None => self.renderer.frame_of_entry(kind, &entry),
                })
            }
        }
    }

    /// `Ready(None)`: nothing is being converted.
    fn poll_converting(&mut self, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        let Some(converting) = &mut self.converting else {
            return Poll::Ready(None);
        };
        let converted = match converting.entry.as_mut().poll(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(converted) => converted,
        };
        let kind = converting.kind;
        self.converting = None;
        match converted {
            Ok(entries) => Poll::Ready(
                entries
                    .first()
                    .map(|entry| self.renderer.frame_of_entry(kind, entry)),
            ),
            Err(status) => {
                self.state = State::Ended;
                Poll::Ready(Some(self.renderer.error(&status)))
            }
        }
    }

    fn bookmark(&mut self) -> Option<Bytes> {
        let State::Running(watch) = &self.state else {
            return None;
        };
        let revision = watch.progress()?;
        let bookmarks = self.bookmarks.as_mut()?;
        (std::mem::replace(&mut bookmarks.sent, revision) != revision)
            .then(|| self.renderer.bookmark(revision, false))
    }
}

impl Stream for Frames {
    type Item = std::result::Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match this.poll_converting(context) {
                Poll::Ready(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Poll::Ready(None) => {}
                Poll::Pending => {
                    if this.deadline.as_mut().poll(context).is_ready()
                        || this.shutdown.as_mut().poll(context).is_ready()
                    {
                        this.converting = None;
                        this.state = State::Ended;
                        continue;
                    }
                    return Poll::Pending;
                }
            }
            match &mut this.state {
                State::Ended => return Poll::Ready(None),
                State::Failed(gone) => {
                    let failure: Failure = gone.clone().into();
                    this.state = State::Ended;
                    return Poll::Ready(Some(Ok(this.renderer.error(&failure))));
                }
                State::Running(watch) => match watch.poll_next_unpin(context) {
                    Poll::Ready(Some(Ok(item))) => {
                        if let Some(frame) = this.take(item) {
                            return Poll::Ready(Some(Ok(frame)));
                        }
                        continue;
                    }
                    Poll::Ready(Some(Err(gone))) => {
                        this.state = State::Failed(gone);
                        continue;
                    }
                    Poll::Ready(None) => {
                        this.state = State::Ended;
                        continue;
                    }
                    Poll::Pending => {}
                },
            }
            if this.deadline.as_mut().poll(context).is_ready()
                || this.shutdown.as_mut().poll(context).is_ready()
            {
                this.state = State::Ended;
                continue;
            }
            let last = this
                .last_bookmark
                .as_mut()
                .is_some_and(|last| last.as_mut().poll(context).is_ready());
            if last {
                this.last_bookmark = None;
            }
            let tick = this
                .bookmarks
                .as_mut()
                .is_some_and(|b| b.interval.poll_tick(context).is_ready());
            if last || tick {
                if let Some(frame) = this.bookmark() {
                    return Poll::Ready(Some(Ok(frame)));
                }
                continue;
            }
            return Poll::Pending;
        }
    }
}
