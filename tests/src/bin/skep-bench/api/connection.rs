//! The smallest HTTP/1.1 client that can load a server: the generator shares its processors with what it measures.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

pub(super) const TOKEN: &str = "bench-token";
const BUFFER_BYTES: usize = 64 << 10;
/// Of an answer that says that something went wrong.
const SHOWN_BYTES: usize = 400;

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// One connection, one request at a time.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    out: Vec<u8>,
    buffer: Vec<u8>,
    /// Of `buffer`, which was read and not looked at yet.
    filled: std::ops::Range<usize>,
}

struct Head {
    code: u16,
    length: usize,
}

impl Connection {
    pub(super) async fn tls(address: SocketAddr, tls: Arc<rustls::ClientConfig>) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let stream = tokio_rustls::TlsConnector::from(tls)
            .connect(name, stream)
            .await?;
        Ok(Self::over(Box::new(stream)))
    }

    pub(super) async fn plain(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(Box::new(stream)))
    }

    fn over(stream: Box<dyn Stream>) -> Self {
        Self {
            stream,
            out: Vec::new(),
            buffer: vec![0; BUFFER_BYTES],
            filled: 0..0,
        }
    }

    /// Sends a request and reads the whole answer, which must be of success; its body's length.
    pub(super) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<usize> {
        self.write(method, path, body).await?;
        let head = self.head().await?;
        if !matches!(head.code, 200 | 201) {
            let shown = self.body_start(head.length.min(SHOWN_BYTES)).await?;
            bail!("{method} {path}: {} {shown}", head.code);
        }
        let mut left = head.length.saturating_sub(self.filled.len());
        self.filled.start = self.filled.end.min(self.filled.start + head.length);
        while left > 0 {
            let read = self.stream.read(&mut self.buffer).await?;
            ensure!(read > 0, "the server closed the connection");
            self.filled = read.min(left)..read;
            left = left.saturating_sub(read);
        }
        Ok(head.length)
    }

    /// The same, with the body.
    pub(crate) async fn exchange(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&[u8]>,
    ) -> Result<Vec<u8>> {
        self.write(method, path, body).await?;
        let head = self.head().await?;
        while self.filled.len() < head.length {
            self.read_more().await?;
        }
        let start = self.filled.start;
        let answer = self.buffer[start..start + head.length].to_vec();
        self.filled.start += head.length;
        ensure!(
            matches!(head.code, 200 | 201),
            "{method} {path}: {} {}",
            head.code,
            String::from_utf8_lossy(&answer)
        );
        Ok(answer)
    }

    /// Begins a watch and returns when the server has answered.
    pub(crate) async fn watch(mut self, path: &str) -> Result<Watch> {
        self.write("GET", path, None).await?;
        let head = self.head().await?;
        ensure!(head.code == 200, "GET {path}: {}", head.code);
        Ok(Watch(self))
    }

    async fn write(&mut self, method: &str, path: &str, body: Option<&[u8]>) -> Result<()> {
        use std::io::Write as _;
        self.out.clear();
        write!(
            self.out,
            "{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {TOKEN}\r\n"
        )?;
        if let Some(body) = body {
            write!(
                self.out,
                "content-type: application/json\r\ncontent-length: {}\r\n\r\n",
                body.len()
            )?;
            self.out.extend_from_slice(body);
        } else {
            self.out.extend_from_slice(b"\r\n");
        }
        self.stream.write_all(&self.out).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn head(&mut self) -> Result<Head> {
        let end = loop {
            let seen = &self.buffer[self.filled.clone()];
            if let Some(end) = seen.windows(4).position(|window| window == b"\r\n\r\n") {
                break self.filled.start + end + 4;
            }
            self.read_more().await?;
        };
        let text = std::str::from_utf8(&self.buffer[self.filled.start..end])?;
        let code = text.get(9..12).context("no status line")?.parse()?;
        let length = text.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse().ok())?
        });
        self.filled.start = end;
        Ok(Head {
            code,
            length: length.unwrap_or(0),
        })
    }

    async fn body_start(&mut self, length: usize) -> Result<String> {
        while self.filled.len() < length {
            self.read_more().await?;
        }
        let start = self.filled.start;
        Ok(String::from_utf8_lossy(&self.buffer[start..start + length]).into_owned())
    }

    async fn read_more(&mut self) -> Result<()> {
        if self.filled.start > 0 {
            self.buffer.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        if self.filled.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let read = self
            .stream
            .read(&mut self.buffer[self.filled.end..])
            .await?;
        ensure!(read > 0, "the server closed the connection");
        self.filled.end += read;
        Ok(())
    }
}

/// A watch that has begun.
pub(crate) struct Watch(Connection);

impl Watch {
    /// The next line that is an event. The body comes in chunks, whose sizes stand on lines of their own.
    pub(crate) async fn line(&mut self) -> Result<Vec<u8>> {
        let connection = &mut self.0;
        loop {
            let seen = &connection.buffer[connection.filled.clone()];
            let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
                connection.read_more().await?;
                continue;
            };
            let line = seen[..end].to_vec();
            connection.filled.start += end + 1;
            if line.first() == Some(&b'{') {
                return Ok(line);
            }
        }
    }

    /// Waits for the next event that says `text`.
    pub(super) async fn event(&mut self, text: &str) -> Result<()> {
        let connection = &mut self.0;
        loop {
            let seen = &connection.buffer[connection.filled.clone()];
            let found = seen
                .windows(text.len())
                .position(|window| window == text.as_bytes());
            if let Some(at) = found {
                connection.filled.start += at + text.len();
                return Ok(());
            }
            // The text may be cut where the buffer ends.
            let kept = seen.len().min(text.len() - 1);
            connection.filled.start = connection.filled.end - kept;
            connection.read_more().await?;
        }
    }
}
