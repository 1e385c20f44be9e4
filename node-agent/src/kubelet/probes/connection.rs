//! A TCP connection for one question and its answer.
//!
//! Pods of this node answer a SYN before `connect` returns, so the connection stands when the request is written. The
//! answer is looked for a few milliseconds later, when those of other pods have come as well: the agent wakes up once for
//! them. Only who takes longer is waited for, with a socket that is registered with the runtime.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::together;

/// Read at once.
const PIECE: usize = 4096;
/// When answers are looked for: the next of these steps that is not too early for most of them.
const ANSWERS: Duration = Duration::from_millis(5);
const EARLY: Duration = Duration::from_millis(2);

pub struct Connection {
    state: State,
    /// An answer has been looked for.
    looked: bool,
}

enum State {
    Fresh(std::net::TcpStream),
    Registered(TcpStream),
    /// Only while it changes.
    Moving,
}

impl Connection {
    /// The connection may not stand yet: whether it can, the first write tells.
    ///
    /// # Errors
    /// As connect(2).
    pub async fn open(host: &str, port: u16) -> io::Result<Self> {
        if let Ok(ip) = host.parse::<IpAddr>() {
            return Self::dial(SocketAddr::new(ip, port));
        }
        let mut last = io::Error::new(ErrorKind::NotFound, "no such host");
        for address in tokio::net::lookup_host((host, port)).await? {
            let stands = async {
                let mut connection = Self::dial(address)?;
                connection.stands().await.map(|()| connection)
            };
            match stands.await {
                Ok(connection) => return Ok(connection),
                Err(e) => last = e,
            }
        }
        Err(last)
    }

    fn dial(address: SocketAddr) -> io::Result<Self> {
        let kind = Type::STREAM.nonblocking();
        let socket = Socket::new(Domain::for_address(address), kind, Some(Protocol::TCP))?;
        // What is written next acknowledges the answer to the SYN too.
        socket.set_tcp_quickack(false)?;
        match socket.connect(&address.into()) {
            Err(e) if e.raw_os_error() != Some(nix::errno::Errno::EINPROGRESS as i32) => Err(e),
            _ => Ok(Self {
                state: State::Fresh(socket.into()),
                looked: false,
            }),
        }
    }

    /// Waits until the connection stands.
    ///
    /// # Errors
    /// As connect(2).
    pub async fn stands(&mut self) -> io::Result<()> {
        loop {
            let (error, peer) = match &self.state {
                State::Fresh(stream) => (stream.take_error()?, stream.peer_addr()),
                State::Registered(stream) => (stream.take_error()?, stream.peer_addr()),
                State::Moving => return Err(ErrorKind::NotConnected.into()),
            };
            match (error, peer) {
                (Some(e), _) => return Err(e),
                (None, Ok(_)) => return Ok(()),
                (None, Err(e)) if e.kind() == ErrorKind::NotConnected => {}
                (None, Err(e)) => return Err(e),
            }
            self.wait(Interest::WRITABLE).await?;
        }
    }

    /// Returns when it may go on; maybe too early.
    async fn wait(&mut self, interest: Interest) -> io::Result<()> {
        let stream = match std::mem::replace(&mut self.state, State::Moving) {
            State::Fresh(stream) => TcpStream::from_std(stream)?,
            State::Registered(stream) => stream,
            State::Moving => return Err(ErrorKind::NotConnected.into()),
        };
        let ready = stream.ready(interest).await;
        self.state = State::Registered(stream);
        ready.map(drop)
    }

    /// # Errors
    /// As send(2), and as connect(2) where the connection does not stand.
    pub async fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written = match &mut self.state {
                State::Fresh(stream) => stream.write(bytes),
                State::Registered(stream) => stream.try_write(bytes),
                State::Moving => return Err(ErrorKind::NotConnected.into()),
            };
            match written {
                Ok(written) => bytes = &bytes[written..],
                Err(e) => self.wait_if(e, Interest::WRITABLE).await?,
            }
        }
        Ok(())
    }

    /// Appends what comes next; 0: nothing does.
    ///
    /// # Errors
    /// As recv(2).
    pub async fn read(&mut self, into: &mut Vec<u8>) -> io::Result<usize> {
        let mut piece = [0; PIECE];
        if !std::mem::replace(&mut self.looked, true) {
            sleep_until(together(Instant::now() + EARLY, ANSWERS)).await;
        }
        loop {
            let read = match &mut self.state {
                State::Fresh(stream) => stream.read(&mut piece),
                State::Registered(stream) => stream.try_read(&mut piece),
                State::Moving => return Err(ErrorKind::NotConnected.into()),
            };
            match read {
                Ok(length) => {
                    into.extend_from_slice(&piece[..length]);
                    return Ok(length);
                }
                Err(e) => self.wait_if(e, Interest::READABLE).await?,
            }
        }
    }

    /// Waits where that helps.
    async fn wait_if(&mut self, error: io::Error, interest: Interest) -> io::Result<()> {
        match error.kind() {
            ErrorKind::WouldBlock => self.wait(interest).await,
            ErrorKind::Interrupted => Ok(()),
            _ => Err(error),
        }
    }
}
