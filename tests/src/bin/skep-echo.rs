//! `skep-echo`: one UDP datagram there and back. The tests mount it into containers, whose own tools speak no UDP.
#![forbid(unsafe_code)]

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;

#[derive(Parser)]
enum Options {
    /// Send back whatever comes
    Serve { port: u16 },
    /// Send a word and print the answer and who it came from
    Ask {
        /// ADDRESS:PORT
        server: String,
        word: String,
        /// Use connect(2), as most resolvers do
        #[arg(long)]
        connected: bool,
    },
}

const ANSWER: Duration = Duration::from_secs(2);

fn main() -> Result<()> {
    let mut buffer = [0; 1500];
    match Options::parse() {
        Options::Serve { port } => {
            let socket = UdpSocket::bind(("0.0.0.0", port))?;
            loop {
                let (length, from) = socket.recv_from(&mut buffer)?;
                socket.send_to(&buffer[..length], from)?;
            }
        }
        Options::Ask {
            server,
            word,
            connected,
        } => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(ANSWER))?;
            if connected {
                socket.connect(&server)?;
                socket.send(word.as_bytes())?;
            } else {
                socket.send_to(word.as_bytes(), &server)?;
            }
            let (length, from) = socket.recv_from(&mut buffer).context("no answer")?;
            println!("{} from {from}", String::from_utf8_lossy(&buffer[..length]));
            Ok(())
        }
    }
}
