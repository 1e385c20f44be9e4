//! One GET at a time, each on a connection of its own, as probes and hooks make them.
//!
//! A node asks all its pods every few seconds. So what can be prepared is: the request is written down once.

use http::{HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use url::{Position, Url};

use super::connection::Connection;
use super::{dial_error, join};
use crate::kubelet::insecure;

/// As much of an answer as a message can use.
pub const MAX_BODY: usize = 10 * 1024;
const MAX_HEAD: usize = 256 * 1024;
const MAX_HEADERS: usize = 128;
const MAX_REDIRECTS: usize = 10;

pub type Headers = Vec<(String, String)>;

/// A request that can be made again and again.
pub struct Get {
    url: Url,
    headers: Headers,
    /// As it goes over the wire.
    request: Vec<u8>,
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    status: u16,
    location: Option<String>,
    body: Vec<u8>,
}

impl Get {
    /// # Errors
    /// What is wrong with the URL or with a header.
    pub fn new(url: &str, headers: Headers) -> Result<Self, String> {
        let url = url.parse().map_err(|e| format!("{e}"))?;
        Self::of(url, headers)
    }

    fn of(url: Url, headers: Headers) -> Result<Self, String> {
        let named = |name: &str| headers.iter().any(|(k, _)| k.eq_ignore_ascii_case(name));
        let path = &url[Position::BeforePath..Position::AfterQuery];
        let mut request = format!("GET {path} HTTP/1.1\r\n").into_bytes();
        let mut add = |name: &str, value: &str| {
            let name = HeaderName::try_from(name).map_err(|e| e.to_string())?;
            let value = HeaderValue::try_from(value).map_err(|e| e.to_string())?;
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                request.extend_from_slice(part);
            }
            Ok::<_, String>(())
        };
        if !named("host") {
            add("host", &join(host(&url), port(&url)))?;
        }
        if !named("user-agent") {
            add("user-agent", "kube-probe/1.36")?;
        }
        if !named("accept") {
            add("accept", "*/*")?;
        }
        for (name, value) in &headers {
            add(name, value)?;
        }
        add("connection", "close")?;
        request.extend_from_slice(b"\r\n");
        Ok(Self {
            url,
            headers,
            request,
        })
    }

    /// Status and body. Follows redirects to the same host; one to another host counts as the answer.
    ///
    /// # Errors
    /// In Go's words.
    pub async fn send(&self) -> Result<(u16, String), String> {
        let mut next;
        let mut get = self;
        for _ in 0..=MAX_REDIRECTS {
            let answer = get.once().await?;
            let is_redirect = (300..400).contains(&answer.status);
            let to = match answer.location.as_ref().filter(|_| is_redirect) {
                Some(location) => get.url.join(location).map_err(|e| e.to_string())?,
                None => return Ok(answer.text()),
            };
            if to.host_str() != get.url.host_str() {
                return Ok(answer.text());
            }
            next = Self::of(to, self.headers.clone())?;
            get = &next;
        }
        Err("stopped after 10 redirects".into())
    }

    async fn once(&self) -> Result<Answer, String> {
        let (host, port) = (host(&self.url), port(&self.url));
        let dialed = |e: std::io::Error| dial_error(host, port, &e);
        let mut wire = match self.url.scheme() {
            "https" => {
                let stream = TcpStream::connect((host, port)).await.map_err(dialed)?;
                let secured = insecure::connect(host, stream).await;
                Wire::Tls(Box::new(secured.map_err(|e| e.to_string())?))
            }
            _ => Wire::Plain(Connection::open(host, port).await.map_err(dialed)?),
        };
        wire.write(&self.request).await.map_err(dialed)?;
        let mut bytes = Vec::new();
        let mut ended = false;
        loop {
            if let Some(answer) = parse(&bytes, ended)? {
                return Ok(answer);
            }
            ended = match wire.read(&mut bytes).await {
                Ok(length) => length == 0,
                Err(_) if bytes.is_empty() => return Err("EOF".into()),
                Err(e) => return Err(e.to_string()),
            };
        }
    }
}

fn host(url: &Url) -> &str {
    url.host_str().unwrap_or_default().trim_matches(['[', ']'])
}

fn port(url: &Url) -> u16 {
    url.port_or_known_default().unwrap_or(80)
}

impl Answer {
    fn text(self) -> (u16, String) {
        let body = String::from_utf8_lossy(&self.body);
        (self.status, body.into_owned())
    }
}

enum Wire {
    Plain(Connection),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Wire {
    async fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Self::Plain(connection) => connection.write(bytes).await,
            Self::Tls(stream) => {
                stream.write_all(bytes).await?;
                stream.flush().await
            }
        }
    }

    async fn read(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize> {
        match self {
            Self::Plain(connection) => connection.read(into).await,
            Self::Tls(stream) => stream.read_buf(into).await,
        }
    }
}

/// The answer in what has come, if it is all there. `ended`: no more comes.
fn parse(mut bytes: &[u8], ended: bool) -> Result<Option<Answer>, String> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut response = httparse::Response::new(&mut headers);
        let length = match response.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() > MAX_HEAD => {
                return Err(format!(
                    "net/http: server response headers exceeded {MAX_HEAD} bytes; aborted"
                ));
            }
            Ok(httparse::Status::Partial) if ended && bytes.is_empty() => return Err("EOF".into()),
            Ok(httparse::Status::Partial) if ended => return Err("unexpected EOF".into()),
            Ok(httparse::Status::Partial) => return Ok(None),
            Err(e) => return Err(format!("malformed HTTP response: {e}")),
        };
        let status = response.code.unwrap_or_default();
        let rest = &bytes[length..];
        if (100..200).contains(&status) && status != 101 {
            // The answer is still to come.
            bytes = rest;
            continue;
        }
        let header = |name: &str| {
            let mut all = response.headers.iter();
            let found = all.find(|h| h.name.eq_ignore_ascii_case(name))?;
            std::str::from_utf8(found.value).ok()
        };
        let chunked = header("transfer-encoding").is_some_and(|v| v.trim().ends_with("chunked"));
        let announced = header("content-length").and_then(|v| v.trim().parse::<usize>().ok());
        let (mut body, complete) = match announced {
            _ if matches!(status, 101 | 204 | 304) => (Vec::new(), true),
            _ if chunked => unchunked(rest),
            Some(length) => (
                rest[..length.min(rest.len())].to_vec(),
                rest.len() >= length,
            ),
            None => (rest.to_vec(), false),
        };
        // A body that is cut short, or longer, does no harm.
        if !complete && !ended && body.len() < MAX_BODY {
            return Ok(None);
        }
        body.truncate(MAX_BODY);
        let location = header("location").map(String::from);
        return Ok(Some(Answer {
            status,
            location,
            body,
        }));
    }
}

/// RFC 9112 §7.1; whether that is all.
fn unchunked(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let (at, size) = match httparse::parse_chunk_size(bytes) {
            Ok(httparse::Status::Complete((_, 0))) | Err(_) => return (body, true),
            Ok(httparse::Status::Complete((at, size))) => (at, size),
            Ok(httparse::Status::Partial) => return (body, false),
        };
        let end = usize::try_from(size)
            .unwrap_or(usize::MAX)
            .saturating_add(at);
        body.extend_from_slice(&bytes[at..end.min(bytes.len())]);
        match bytes.get(end.saturating_add(2)..) {
            Some(rest) => bytes = rest,
            None => return (body, false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is made of it when it has come whole; before that nothing is.
    fn check(text: &str, ended: bool, expected: Result<(u16, &str), &str>) {
        let whole = parse(text.as_bytes(), ended);
        let whole = whole.map(|answer| answer.expect("an answer").text());
        let expected = expected.map(|(status, body)| (status, body.to_string()));
        assert_eq!(whole, expected.map_err(String::from), "{text:?}");
        for cut in 0..text.len() {
            if ended || whole.is_err() {
                break;
            }
            let part = parse(&text.as_bytes()[..cut], false);
            assert_eq!(part, Ok(None), "{:?}", &text[..cut]);
        }
    }

    #[test]
    fn an_answer_ends_where_it_says() {
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
            false,
            Ok((200, "ok")),
        );
        check("HTTP/1.1 204 No Content\r\n\r\n", false, Ok((204, "")));
        check(
            "HTTP/1.0 200 OK\r\n\r\nall of it",
            true,
            Ok((200, "all of it")),
        );
        check(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n",
            false,
            Ok((500, "")),
        );
        check(
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n",
            false,
            Ok((200, "abc0123456789")),
        );
        // What is cut short is as good as what was said.
        check(
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nok",
            true,
            Ok((200, "ok")),
        );
        check("HTTP/1.1 200", true, Err("unexpected EOF"));
        check("", true, Err("EOF"));
        check(
            "SSH-2.0-OpenSSH\r\n\r\n",
            false,
            Err("malformed HTTP response: invalid HTTP version"),
        );
    }

    #[test]
    fn no_answer_is_too_long() {
        let body = "x".repeat(3 * MAX_BODY);
        for text in [
            format!("HTTP/1.1 200 OK\r\n\r\n{body}"),
            format!("HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n{body}"),
            format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{body}"
            ),
        ] {
            let answer = parse(text.as_bytes(), false).unwrap().unwrap();
            assert_eq!(answer.body.len(), MAX_BODY);
        }
        let head = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(MAX_HEAD));
        assert!(parse(head.as_bytes(), false).is_err());
    }

    #[test]
    fn a_request_says_who_asks_unless_the_probe_says_it() {
        let request = |headers: &[(&str, &str)]| {
            let headers = headers.iter().map(|(k, v)| (k.to_string(), v.to_string()));
            let get = Get::new("http://10.0.0.1:8080/a b?c=d", headers.collect())?;
            Ok::<_, String>(String::from_utf8(get.request).unwrap())
        };
        assert_eq!(
            request(&[]).unwrap(),
            "GET /a%20b?c=d HTTP/1.1\r\nhost: 10.0.0.1:8080\r\nuser-agent: kube-probe/1.36\r\naccept: */*\r\n\
             connection: close\r\n\r\n"
        );
        assert_eq!(
            request(&[
                ("Host", "web"),
                ("User-Agent", "me"),
                ("X-A", "b"),
                ("Accept", "a/b")
            ])
            .unwrap(),
            "GET /a%20b?c=d HTTP/1.1\r\nhost: web\r\nuser-agent: me\r\nx-a: b\r\naccept: a/b\r\n\
             connection: close\r\n\r\n"
        );
        assert!(request(&[("X", "a\r\nb: c")]).is_err());
        assert!(request(&[("X Y", "a")]).is_err());
    }
}
