//! Large bodies in bounded pieces: joined lists, optionally compressed.

use std::{
    convert::Infallible,
    io::Write,
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use flate2::{Compression as Level, write::GzEncoder};
use http::{HeaderMap, header};
use http_body::{Frame, SizeHint};

use crate::cache::Body as Stored;

/// Pieces are filled up to this size before they are sent.
const PIECE_BYTES: usize = 64 * 1024;
/// Smaller answers are not worth compressing (upstream's bound).
const COMPRESS_FROM_BYTES: usize = 128 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    None,
    Gzip,
}

impl Compression {
    pub fn wanted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(header::ACCEPT_ENCODING).into_iter();
        let gzip = values.filter_map(|v| v.to_str().ok()).any(|v| {
            v.split(',')
                .any(|c| c.split(';').next().unwrap_or_default().trim() == "gzip")
        });
        if gzip { Self::Gzip } else { Self::None }
    }
}

/// `head`, the items joined with commas, `]}` and a newline. An item's first `skip` bytes are replaced with `{`.
///
/// Returns the content encoding used.
pub fn joined(
    head: Bytes,
    items: Vec<(Stored, usize)>,
    compression: Compression,
) -> (Body, Option<&'static str>) {
    let items_size: usize = items
        .iter()
        .map(|(bytes, skip)| bytes.len() - skip + usize::from(*skip > 0) + 1)
        .sum();
    let size = head.len() + items_size.saturating_sub(1) + TAIL.len();
    let pieces = Joined {
        head: Some(head),
        items: items.into_iter(),
        first: true,
        ended: false,
    };
    if compression == Compression::Gzip && size >= COMPRESS_FROM_BYTES {
        let body = Pieces {
            pieces: Gzipped::new(pieces),
            size: None,
        };
        return (Body::new(body), Some("gzip"));
    }
    let body = Pieces {
        pieces,
        size: Some(size as u64),
    };
    (Body::new(body), None)
}

const TAIL: &[u8] = b"]}\n";

struct Joined {
    head: Option<Bytes>,
    items: std::vec::IntoIter<(Stored, usize)>,
    first: bool,
    ended: bool,
}

impl Iterator for Joined {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        // What fits is known before it is copied, so that nothing grows on the way.
        let mut count = 0;
        let mut size = self.head.as_ref().map_or(0, Bytes::len) + TAIL.len();
        for (bytes, _) in self.items.as_slice() {
            if size >= PIECE_BYTES {
                break;
            }
            size += bytes.len() + 2;
            count += 1;
        }
        let mut piece = BytesMut::with_capacity(size);
        if let Some(head) = self.head.take() {
            piece.extend_from_slice(&head);
        }
        for (bytes, skip) in self.items.by_ref().take(count) {
            if !std::mem::take(&mut self.first) {
                piece.extend_from_slice(b",");
            }
            if skip > 0 {
                piece.extend_from_slice(b"{");
            }
            bytes.write(skip, &mut piece);
        }
        if self.items.len() == 0 {
            piece.extend_from_slice(TAIL);
            self.ended = true;
        }
        Some(piece.freeze())
    }
}

struct Gzipped<I> {
    pieces: I,
    encoder: Option<GzEncoder<Vec<u8>>>,
}

impl<I> Gzipped<I> {
    fn new(pieces: I) -> Self {
        Self {
            pieces,
            encoder: Some(GzEncoder::new(Vec::new(), Level::fast())),
        }
    }
}

impl<I: Iterator<Item = Bytes>> Iterator for Gzipped<I> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        loop {
            let encoder = self.encoder.as_mut()?;
            let Some(piece) = self.pieces.next() else {
                // Writing to memory cannot fail.
                let rest = self.encoder.take()?.finish().unwrap_or_default();
                return Some(rest.into());
            };
            if encoder.write_all(&piece).is_err() {
                return None;
            }
            let compressed = std::mem::take(encoder.get_mut());
            if !compressed.is_empty() {
                return Some(compressed.into());
            }
        }
    }
}

struct Pieces<I> {
    pieces: I,
    /// Known for uncompressed bodies: `Content-Length`.
    size: Option<u64>,
}

impl<I: Iterator<Item = Bytes> + Unpin> http_body::Body for Pieces<I> {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let piece = self.pieces.next();
        if let (Some(size), Some(piece)) = (&mut self.size, &piece) {
            *size = size.saturating_sub(piece.len() as u64);
        }
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        self.size
            .map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::read::GzDecoder;
    use http_body_util::BodyExt;

    use super::*;

    async fn read(items: Vec<(Bytes, usize)>, compression: Compression) -> (Bytes, bool) {
        let items = items.into_iter().map(|(item, skip)| (item.into(), skip));
        let head = Bytes::from_static(b"{\"items\":[");
        let (body, encoding) = joined(head, items.collect(), compression);
        let size = http_body::Body::size_hint(&body).exact();
        let bytes = body.collect().await.expect("infallible").to_bytes();
        if let Some(size) = size {
            assert_eq!(size, bytes.len() as u64);
        }
        (bytes, encoding.is_some())
    }

    #[tokio::test]
    async fn joins_with_exact_length() {
        let check = async |items: &[(&'static str, usize)], expected: &str| {
            let items = items
                .iter()
                .map(|(t, s)| (Bytes::from_static(t.as_bytes()), *s));
            assert_eq!(read(items.collect(), Compression::Gzip).await.0, expected);
        };
        check(&[], "{\"items\":[]}\n").await;
        check(&[("{\"k\":1,\"a\":2}", 7)], "{\"items\":[{\"a\":2}]}\n").await;
        check(&[("{}", 0), ("{}", 0)], "{\"items\":[{},{}]}\n").await;
    }

    #[tokio::test]
    async fn large_lists_compress_to_the_same_bytes() {
        let item = Bytes::from(format!("{{\"a\":\"{}\"}}", "x".repeat(50_000)));
        let items = vec![(item, 0); 9];
        let (plain, compressed) = read(items.clone(), Compression::None).await;
        assert!(!compressed);
        let (gzip, compressed) = read(items, Compression::Gzip).await;
        assert!(compressed && gzip.len() < plain.len());
        let mut text = Vec::new();
        GzDecoder::new(gzip.as_ref())
            .read_to_end(&mut text)
            .expect("gzip");
        assert_eq!(text, plain);
    }
}
