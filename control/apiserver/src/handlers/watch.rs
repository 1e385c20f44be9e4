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
        field: selection.route(resource),
    });
    let timeout = match options.timeout_seconds {
        None | Some(0) => DEFAULT_TIMEOUT.mul_f64(1.0 + rand::random::<f64>()),
        // A time that is over: the watch ends as it begins, as upstream's does.
        Some(seconds) => Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
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
    of: Of,
    /// What it is for comes first; more may follow that is wanted next.
    entries: BoxFuture<'static, Result<Vec<Arc<Entry>>>>,
}

/// What converted entries are for.
enum Of {
    /// The one that a watcher sees.
    Frame(EventKind),
    /// The last state that a watcher saw, under the revision of the change after which it sees the object no more.
    Left(u64),
    /// An initial object, or a change's state before and after, of which the selectors are still to be asked.
    Initial,
    Change(Arc<Event>),
}

/// What a watcher sees of an item.
enum Shown {
    Nothing,
    InitialEnd(u64),
    Entry(EventKind, Arc<Entry>, Option<Arc<Event>>),
    /// The object is selected no more: see [`Event::left`].
    Left(Arc<Event>),
}

impl Frames {
    /// What a watcher with these selectors sees of an item.
    fn show(&self, item: WatchItem) -> Shown {
        match item {
            WatchItem::Initial(entry) => self.show_initial(entry),
            WatchItem::InitialEnd(revision) if self.mark_initial_end => Shown::InitialEnd(revision),
            WatchItem::InitialEnd(_) => Shown::Nothing,
            WatchItem::Event(event) => {
                let before = event.previous.as_ref();
                let before = before.is_some_and(|previous| self.selection.matches(previous));
                let now = self.selection.matches(&event.entry);
                match seen(event.kind, before, now) {
                    None => Shown::Nothing,
                    Some(EventKind::Deleted) if event.kind != EventKind::Deleted => {
                        Shown::Left(event)
                    }
                    Some(kind) => Shown::Entry(kind, event.entry.clone(), Some(event)),
                }
            }
        }
    }

    fn show_initial(&self, entry: Arc<Entry>) -> Shown {
        if self.selection.matches(&entry) {
            Shown::Entry(EventKind::Added, entry, None)
        } else {
            Shown::Nothing
        }
    }

    /// The same of a change whose states were converted. `previous` is none where there is none and for a delete, whose
    /// last state is `entry`.
    fn show_converted(
        &self,
        event: &Event,
        previous: Option<Arc<Entry>>,
        entry: Arc<Entry>,
    ) -> Shown {
        let now = self.selection.matches(&entry);
        let deleted = event.kind == EventKind::Deleted;
        let before = match &previous {
            Some(previous) => self.selection.matches(previous),
            None => deleted && now,
        };
        match (seen(event.kind, before, now), previous) {
            (None, _) => Shown::Nothing,
            (Some(EventKind::Deleted), Some(previous)) => {
                let left = Arc::new(previous.at_revision(event.revision));
                Shown::Entry(EventKind::Deleted, left, None)
            }
            (Some(kind), _) => Shown::Entry(kind, entry, None),
        }
    }

    /// The entries of which the selectors can be asked only after their conversion.
    fn to_convert(&self, item: &WatchItem) -> Option<(Of, Vec<Arc<Entry>>)> {
        let resource = &self.renderer.resource;
        let form = resource.stored_form.as_ref()?;
        if self.selection.is_everything() {
            return None;
        }
        let (of, entries) = match item {
            WatchItem::Initial(entry) => (Of::Initial, vec![entry.clone()]),
            WatchItem::InitialEnd(_) => return None,
            WatchItem::Event(event) => {
                let mut entries = vec![event.entry.clone()];
                let previous = event.previous.iter().cloned();
                entries.extend(previous.filter(|_| event.kind != EventKind::Deleted));
                (Of::Change(event.clone()), entries)
            }
        };
        let known = entries.iter().all(|entry| form.selects(resource, entry));
        (!known).then_some((of, entries))
    }

    fn is_shown(&self, entry: &Entry) -> bool {
        let resource = &self.renderer.resource;
        let form = resource.stored_form.as_ref();
        form.is_none_or(|form| form.shows(resource, entry))
    }

    fn convert(&mut self, of: Of, mut entries: Vec<Arc<Entry>>) {
        // Initial objects are converted by the hundred: those that come next are kept until they are asked for.
        let form = self.renderer.resource.stored_form.as_ref();
        let kept = entries
            .iter()
            .all(|entry| form.is_some_and(|form| form.keeps(entry)));
        if let (State::Running(watch), false) = (&self.state, kept) {
            let more = watch.upcoming(conversion::REVIEW_OBJECTS - 1).iter();
            entries.extend(more.filter(|entry| !self.is_shown(entry)).cloned());
        }
        let (api, resource) = (self.api.clone(), self.renderer.resource.clone());
        self.converting = Some(Converting {
            of,
            entries: Box::pin(async move { conversion::present(&api, &resource, entries).await }),
        });
    }

    /// The frame of an item, or the beginning of its conversion.
    fn take(&mut self, item: WatchItem) -> Option<Bytes> {
        if let Some((of, entries)) = self.to_convert(&item) {
            self.convert(of, entries);
            return None;
        }
        match self.show(item) {
            Shown::Nothing => None,
            Shown::InitialEnd(revision) => Some(self.renderer.bookmark(revision, true)),
            Shown::Left(event) => {
                let previous = event.previous.as_ref()?;
                if !self.is_shown(previous) {
                    self.convert(Of::Left(event.revision), vec![previous.clone()]);
                    return None;
                }
                let left = event.left()?;
                Some(self.renderer.event(EventKind::Deleted, &event, left))
            }
            Shown::Entry(kind, entry, event) => {
                if !self.is_shown(&entry) {
                    self.convert(Of::Frame(kind), vec![entry]);
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
        let converted = match converting.entries.as_mut().poll(context) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(converted) => converted,
        };
        let Some(Converting { of, .. }) = self.converting.take() else {
            return Poll::Ready(None);
        };
        let mut entries = match converted {
            Ok(entries) => entries.into_iter(),
            Err(status) => {
                self.state = State::Ended;
                return Poll::Ready(Some(self.renderer.error(&status)));
            }
        };
        let Some(entry) = entries.next() else {
            return Poll::Ready(None);
        };
        let shown = match of {
            Of::Frame(kind) => Shown::Entry(kind, entry, None),
            Of::Left(revision) => {
                let left = Arc::new(entry.at_revision(revision));
                Shown::Entry(EventKind::Deleted, left, None)
            }
            Of::Initial => self.show_initial(entry),
            Of::Change(event) => self.show_converted(&event, entries.next(), entry),
        };
        Poll::Ready(match shown {
            Shown::Entry(kind, entry, _) => Some(self.renderer.frame_of_entry(kind, &entry)),
            Shown::Nothing | Shown::InitialEnd(_) | Shown::Left(_) => None,
        })
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

/// What a change is to a watcher whose selectors matched the object before or match it now.
fn seen(kind: EventKind, before: bool, now: bool) -> Option<EventKind> {
    match (kind, before, now) {
        (EventKind::Deleted, true, _) | (_, true, false) => Some(EventKind::Deleted),
        (EventKind::Deleted, false, _) | (_, false, false) => None,
        (_, false, true) => Some(EventKind::Added),
        (_, true, true) => Some(EventKind::Modified),
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
