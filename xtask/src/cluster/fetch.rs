//! A plain HTTP GET, to be run inside a namespace where no other client may be installed.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Args;

#[derive(Args)]
pub struct Options {
    /// ADDRESS:PORT
    address: SocketAddr,
    #[arg(default_value = "/")]
    path: String,
}

const TIMEOUT: Duration = Duration::from_secs(5);
const LARGEST_ANSWER_BYTES: u64 = 1 << 20;

pub fn run(options: &Options) -> Result<()> {
    crate::progress::print(&get(options.address, &options.path)?);
    Ok(())
}

/// The body of the page.
fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)
        .with_context(|| format!("cannot connect to {address}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    stream
        .take(LARGEST_ANSWER_BYTES)
        .read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{address} answered {status}");
    }
    Ok(body.to_owned())
}
