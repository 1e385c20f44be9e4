//! The ring of flow events, read.

use std::io;
use std::net::IpAddr;
use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use skep_ebpf_common::Address;
use skep_ebpf_common::event::{FlowEvent, Hook};
use skep_ebpf_common::reason::Reason;

use crate::error::Error;

/// What a program told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Of the monotonic clock.
    pub monotonic_ns: u64,
    pub protocol: u8,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    /// Source and destination as it goes on, where they change.
    pub new: Option<[(IpAddr, u16); 2]>,
    pub reason: Reason,
    /// Where: a program, or the socket.
    pub hook: &'static str,
    /// The id under which the Service port is counted; 0: none.
    pub service: u32,
}

pub struct EventReader {
    ring: RingBuf<MapData>,
}

impl EventReader {
    pub(crate) fn open(pin: &Path) -> Result<Self, Error> {
        let refused =
            |error: aya::maps::MapError| Error::file("open", pin, io::Error::other(error));
        let map = MapData::from_pin(pin).map_err(refused)?;
        let ring = RingBuf::try_from(Map::RingBuf(map)).map_err(refused)?;
        Ok(Self { ring })
    }

    /// The next event, if there is one already. Events of programs that this agent does not know
    /// are passed over.
    pub fn next_event(&mut self) -> Option<Event> {
        loop {
            let item = self.ring.next()?;
            if let Some(event) = read(&item) {
                return Some(event);
            }
        }
    }
}

fn read(bytes: &[u8]) -> Option<Event> {
    if bytes.len() != size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: as many bytes as the event has, any of which are a value; no alignment is assumed.
    let event = unsafe { bytes.as_ptr().cast::<FlowEvent>().read_unaligned() };
    let flow = event.flow;
    let changed = event.new_destination != Address::ANY;
    Some(Event {
        monotonic_ns: event.monotonic_ns,
        protocol: flow.protocol,
        source: (flow.source.to_ip(), flow.source_port.get()),
        destination: (flow.destination.to_ip(), flow.destination_port.get()),
        new: changed.then(|| {
            [
                (event.new_source.to_ip(), event.new_source_port.get()),
                (
                    event.new_destination.to_ip(),
                    event.new_destination_port.get(),
                ),
            ]
        }),
        reason: Reason::from_u32(event.reason)?,
        hook: Hook::name(event.hook),
        service: event.service,
    })
}
