//! SPDY/3.1 framing, as port-forward and older exec clients speak it.
//!
//! Only what those clients use: streams with headers, data, half-close, reset, ping, go-away.
//! Windows are not kept: neither is moby/spdystream's at the other end. Headers of each direction
//! share one zlib stream that begins with the protocol's dictionary.
//! <https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/>

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

const VERSION: u16 = 3;
const FIN: u8 = 1;
/// Streams of one connection that may be open at the same time.
const MAX_STREAMS: usize = 1000;
const MAX_FRAME: usize = 1 << 20;
const MAX_HEADERS: usize = 64 * 1024;
/// Pieces that wait for a slow reader before the whole connection does.
const QUEUE: usize = 64;

pub type Headers = BTreeMap<String, String>;

/// The words of the dictionary, each with its length before it, then the rest.
const WORDS: &str = "options head post put delete trace accept accept-charset accept-encoding \
    accept-language accept-ranges age allow authorization cache-control connection content-base \
    content-encoding content-language content-length content-location content-md5 content-range \
    content-type date etag expect expires from host if-match if-modified-since if-none-match \
    if-range if-unmodified-since last-modified location max-forwards pragma proxy-authenticate \
    proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade \
    user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url \
    public set-cookie keep-alive origin";
const REST: &str = "1001012012022052063003023033043053063074024054064074084094104114124134144154\
    16417502504505203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad \
    Request401 Unauthorized403 Forbidden404 Not Found500 Internal Server Error501 Not \
    Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 \
    Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,\
    application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,\
    deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut out = Vec::with_capacity(1423);
    for word in WORDS.split_whitespace() {
        let word = word.replace('_', " ");
        out.extend((word.len() as u32).to_be_bytes());
        out.extend(word.as_bytes());
    }
    out.extend(REST.as_bytes());
    out
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {what}"))
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Frame {
    SynStream {
        id: u32,
        headers: Headers,
        fin: bool,
    },
    SynReply {
        id: u32,
        headers: Headers,
    },
    Reset {
        id: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway,
    Data {
        id: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// SETTINGS, HEADERS, WINDOW_UPDATE and unknown ones.
    Other {
        fin: Option<u32>,
    },
}

struct Decoder {
    zlib: Decompress,
}

impl Decoder {
    fn new() -> Self {
        Self {
            zlib: Decompress::new(true),
        }
    }

    /// `None` until a whole frame is there.
    fn decode(&mut self, buffer: &mut BytesMut) -> io::Result<Option<Frame>> {
        if buffer.len() < 8 {
            return Ok(None);
        }
        let length =
            usize::from(buffer[5]) << 16 | usize::from(buffer[6]) << 8 | usize::from(buffer[7]);
        if length > MAX_FRAME {
            return Err(bad("the frame is too long"));
        }
        if buffer.len() < 8 + length {
            return Ok(None);
        }
        let mut head = buffer.split_to(8);
        let mut body = buffer.split_to(length);
        let first = head.get_u32();
        let flags = head[0];
        let fin = flags & FIN != 0;
        if first & 0x8000_0000 == 0 {
            return Ok(Some(Frame::Data {
                id: first,
                bytes: body.freeze(),
                fin,
            }));
        }
        let kind = (first & 0xffff) as u16;
        if (first >> 16) as u16 & 0x7fff != VERSION {
            return Err(bad("the version is not 3"));
        }
        let need = |body: &BytesMut, bytes: usize| match body.len() >= bytes {
            true => Ok(()),
            false => Err(bad("the frame is too short")),
        };
        Ok(Some(match kind {
            1 => {
                need(&body, 10)?;
                let id = body.get_u32() & 0x7fff_ffff;
                body.advance(6);
                Frame::SynStream {
                    id,
                    headers: self.headers(&body)?,
                    fin,
                }
            }
            2 => {
                need(&body, 4)?;
                let id = body.get_u32() & 0x7fff_ffff;
                Frame::SynReply {
                    id,
                    headers: self.headers(&body)?,
                }
            }
            3 => {
                need(&body, 8)?;
                Frame::Reset {
                    id: body.get_u32() & 0x7fff_ffff,
                    status: body.get_u32(),
                }
            }
            6 => {
                need(&body, 4)?;
                Frame::Ping { id: body.get_u32() }
            }
            7 => Frame::GoAway,
            8 => {
                need(&body, 4)?;
                let id = body.get_u32() & 0x7fff_ffff;
                // Nobody needs them, but the shared zlib stream must see them.
                self.headers(&body)?;
                Frame::Other {
                    fin: fin.then_some(id),
                }
            }
            _ => Frame::Other { fin: None },
        }))
    }

    fn headers(&mut self, compressed: &[u8]) -> io::Result<Headers> {
        let mut plain = BytesMut::from(&self.inflate(compressed)?[..]);
        let number = |plain: &mut BytesMut| match plain.len() >= 4 {
            true => Ok(plain.get_u32() as usize),
            false => Err(bad("the headers are too short")),
        };
        let text = |plain: &mut BytesMut, length: usize| match plain.len() >= length {
            true => Ok(String::from_utf8_lossy(&plain.split_to(length)).into_owned()),
            false => Err(bad("a header is too short")),
        };
        let count = number(&mut plain)?;
        let mut headers = Headers::new();
        for _ in 0..count {
            let length = number(&mut plain)?;
            let name = text(&mut plain, length)?;
            let length = number(&mut plain)?;
            headers.insert(name.to_ascii_lowercase(), text(&mut plain, length)?);
        }
        Ok(headers)
    }

    fn inflate(&mut self, mut input: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(1024);
        loop {
            let before = self.zlib.total_in();
            match self
                .zlib
                .decompress_vec(input, &mut out, FlushDecompress::Sync)
            {
                Err(e) if e.needs_dictionary().is_some() => {
                    input = &input[(self.zlib.total_in() - before) as usize..];
                    self.zlib
                        .set_dictionary(&dictionary())
                        .map_err(|_| bad("wrong dictionary"))?;
                    continue;
                }
                Err(_) => return Err(bad("the headers are not compressed")),
                Ok(Status::StreamEnd) => return Ok(out),
                Ok(_) => {}
            }
            input = &input[(self.zlib.total_in() - before) as usize..];
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            if out.len() >= MAX_HEADERS {
                return Err(bad("the headers are too long"));
            }
            if self.zlib.total_in() == before && out.len() < out.capacity() {
                return Err(bad("the headers do not end"));
            }
            out.reserve(1024);
        }
    }
}

struct Encoder {
    zlib: Compress,
}

impl Encoder {
    fn new() -> io::Result<Self> {
        let mut zlib = Compress::new(Compression::default(), true);
        zlib.set_dictionary(&dictionary())
            .map_err(|_| bad("the dictionary is refused"))?;
        Ok(Self { zlib })
    }

    fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> io::Result<()> {
        let control = |out: &mut BytesMut, kind: u16, flags: u8, length: usize| {
            out.put_u16(0x8000 | VERSION);
            out.put_u16(kind);
            out.put_u32(u32::from(flags) << 24 | length as u32);
        };
        match frame {
            Frame::Data { id, bytes, fin } => {
                out.put_u32(*id);
                out.put_u32(u32::from(u8::from(*fin)) << 24 | bytes.len() as u32);
                out.put_slice(bytes);
            }
            Frame::SynStream { id, headers, fin } => {
                let block = self.deflate(headers)?;
                control(out, 1, u8::from(*fin), 10 + block.len());
                out.put_u32(*id);
                out.put_u32(0);
                out.put_u16(0);
                out.put_slice(&block);
            }
            Frame::SynReply { id, headers } => {
                let block = self.deflate(headers)?;
                control(out, 2, 0, 4 + block.len());
                out.put_u32(*id);
                out.put_slice(&block);
            }
            Frame::Reset { id, status } => {
                control(out, 3, 0, 8);
                out.put_u32(*id);
                out.put_u32(*status);
            }
            Frame::Ping { id } => {
                control(out, 6, 0, 4);
                out.put_u32(*id);
            }
            Frame::GoAway => {
                control(out, 7, 0, 8);
                out.put_u64(0);
            }
            Frame::Other { .. } => {}
        }
        Ok(())
    }

    fn deflate(&mut self, headers: &Headers) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        plain.extend((headers.len() as u32).to_be_bytes());
        for (name, value) in headers {
            for text in [name, value] {
                plain.extend((text.len() as u32).to_be_bytes());
                plain.extend(text.as_bytes());
            }
        }
        let mut out = Vec::with_capacity(plain.len() + 64);
        let mut input = plain.as_slice();
        loop {
            let before = self.zlib.total_in();
            self.zlib
                .compress_vec(input, &mut out, FlushCompress::Sync)
                .map_err(|_| bad("the headers cannot be compressed"))?;
            input = &input[(self.zlib.total_in() - before) as usize..];
            if input.is_empty() && out.len() < out.capacity() {
                return Ok(out);
            }
            out.reserve(256);
        }
    }
}

/// One stream that the client has opened.
pub struct Stream {
    id: u32,
    pub headers: Headers,
    /// What the client sends; ends when it closes its half or resets the stream.
    pub input: mpsc::Receiver<Bytes>,
    frames: mpsc::Sender<Frame>,
}

impl Stream {
    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map(String::as_str)
            .unwrap_or_default()
    }

    pub fn split(self) -> (mpsc::Receiver<Bytes>, Output) {
        (
            self.input,
            Output {
                id: self.id,
                frames: self.frames,
            },
        )
    }
}

/// The sending half of a stream.
#[derive(Clone)]
pub struct Output {
    id: u32,
    frames: mpsc::Sender<Frame>,
}

impl Output {
    /// False when the connection is gone.
    pub async fn send(&self, bytes: Bytes) -> bool {
        self.frames
            .send(Frame::Data {
                id: self.id,
                bytes,
                fin: false,
            })
            .await
            .is_ok()
    }

    pub async fn close(&self) {
        let fin = Frame::Data {
            id: self.id,
            bytes: Bytes::new(),
            fin: true,
        };
        // A closed connection has closed the stream too.
        let _ = self.frames.send(fin).await;
    }
}

/// Serves one connection: streams come out as the client opens them.
pub fn serve<S>(io: S) -> io::Result<mpsc::Receiver<Stream>>
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let (mut reader, mut writer) = tokio::io::split(io);
    let (frames, mut outgoing) = mpsc::channel::<Frame>(QUEUE);
    let (streams, incoming) = mpsc::channel(16);
    let mut encoder = Encoder::new()?;
    tokio::spawn(async move {
        let mut buffer = BytesMut::new();
        while let Some(frame) = outgoing.recv().await {
            buffer.clear();
            let written = match encoder.encode(&frame, &mut buffer) {
                Ok(()) => writer.write_all(&buffer).await,
                Err(e) => Err(e),
            };
            if written.is_err() || writer.flush().await.is_err() {
                return;
            }
        }
        // The other end sees the end of the connection; it may be gone before.
        let _ = writer.shutdown().await;
    });
    tokio::spawn(async move {
        let mut decoder = Decoder::new();
        let mut buffer = BytesMut::with_capacity(16 * 1024);
        let mut open: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
        let frames = Arc::new(frames);
        loop {
            let frame = match decoder.decode(&mut buffer) {
                Ok(Some(frame)) => frame,
                Ok(None) => match reader.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => continue,
                },
                Err(e) => {
                    tracing::debug!(error = %e, "a SPDY client sent something else");
                    let _ = frames.send(Frame::GoAway).await;
                    return;
                }
            };
            match frame {
                Frame::SynStream { id, headers, fin } => {
                    open.retain(|_, sender| !sender.is_closed());
                    if open.len() >= MAX_STREAMS {
                        let refused = Frame::Reset { id, status: 3 };
                        if frames.send(refused).await.is_err() {
                            return;
                        }
                        continue;
                    }
                    let (send, input) = mpsc::channel(QUEUE);
                    if !fin {
                        open.insert(id, send);
                    }
                    let reply = Frame::SynReply {
                        id,
                        headers: Headers::new(),
                    };
                    let stream = Stream {
                        id,
                        headers,
                        input,
                        frames: (*frames).clone(),
                    };
                    if frames.send(reply).await.is_err() || streams.send(stream).await.is_err() {
                        return;
                    }
                }
                Frame::Data { id, bytes, fin } => {
                    if let Some(sender) = open.get(&id)
                        && !bytes.is_empty()
                        && sender.send(bytes).await.is_err()
                    {
                        open.remove(&id);
                    }
                    if fin {
                        open.remove(&id);
                    }
                }
                Frame::Reset { id, .. } | Frame::Other { fin: Some(id) } => {
                    open.remove(&id);
                }
                Frame::Ping { id } if id % 2 == 1 => {
                    if frames.send(Frame::Ping { id }).await.is_err() {
                        return;
                    }
                }
                Frame::GoAway => return,
                Frame::Ping { .. } | Frame::SynReply { .. } | Frame::Other { fin: None } => {}
            }
        }
    });
    Ok(incoming)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65_521;
            b = (b + a) % 65_521;
        }
        assert_eq!(
            b << 16 | a,
            0xe3c6_a7c2,
            "Adler-32 of the SPDY/3 dictionary"
        );
    }

    #[test]
    fn frames_come_back_as_they_were_sent() {
        let headers = |n: u32| {
            Headers::from([
                ("streamtype".to_string(), "data".to_string()),
                ("port".to_string(), n.to_string()),
            ])
        };
        let mut frames = Vec::new();
        for id in 0..200 {
            frames.push(Frame::SynStream {
                id,
                headers: headers(id),
                fin: id % 3 == 0,
            });
            frames.push(Frame::SynReply {
                id,
                headers: Headers::new(),
            });
            frames.push(Frame::Data {
                id,
                bytes: Bytes::from(vec![7; 1000]),
                fin: id % 2 == 0,
            });
        }
        frames.push(Frame::Reset { id: 5, status: 2 });
        frames.push(Frame::Ping { id: 1 });
        frames.push(Frame::GoAway);
        let mut encoder = Encoder::new().unwrap();
        let mut wire = BytesMut::new();
        for frame in &frames {
            encoder.encode(frame, &mut wire).unwrap();
        }
        let mut decoder = Decoder::new();
        // In pieces of seven bytes, as a slow connection would bring them.
        let mut buffer = BytesMut::new();
        let mut seen = Vec::new();
        for piece in wire.chunks(7) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = decoder.decode(&mut buffer).unwrap() {
                seen.push(frame);
            }
        }
        assert_eq!(seen, frames);
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_arrives_panics(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut decoder = Decoder::new();
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }
}
