//! The programs, loaded: as descriptors of the kernel's. What they are made from is not kept: code and
//! type information take some megabytes.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use aya::Ebpf;
use aya::programs::{
    CgroupSock, CgroupSockAddr, Program, ProgramError, ProgramFd, SchedClassifier, Xdp,
};

use crate::error::Error;
use crate::sys::{self, AttachType};

pub(crate) const SOCKET_HOOKS: [(&str, AttachType); 8] = [
    ("connect4", AttachType::Connect4),
    ("sendmsg4", AttachType::Sendmsg4),
    ("recvmsg4", AttachType::Recvmsg4),
    ("getpeername4", AttachType::Getpeername4),
    ("connect6", AttachType::Connect6),
    ("sendmsg6", AttachType::Sendmsg6),
    ("recvmsg6", AttachType::Recvmsg6),
    ("getpeername6", AttachType::Getpeername6),
];

/// Frees what the hooks above take. Attached before them, so that nothing stays taken.
pub(crate) const SOCKET_RELEASE: &str = "sock_release";

pub(crate) const XDP_PROGRAM: &str = "xdp_net";

const PACKET_PROGRAMS: [&str; 4] = ["from_pod", "to_pod", "from_net", "to_net"];

/// What a packet program decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// To the stack, or on its way out.
    Pass,
    Drop,
    /// Past the stack, into a pod or to a neighbour.
    Redirect,
    /// Out of the interface that it came by (XDP).
    Return,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketResult {
    pub verdict: Verdict,
    /// As the program left it.
    pub frame: Vec<u8>,
    /// Mean of the runs.
    pub duration: Duration,
}

/// What a program has cost since it was loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProgramCost {
    pub program: &'static str,
    pub runs: u64,
    pub time: Duration,
}

pub(crate) struct Programs {
    loaded: BTreeMap<&'static str, OwnedFd>,
    /// Why the kernel refuses the one for XDP, if it does: before 5.18; tc does without.
    pub(crate) xdp_refused: Option<String>,
}

impl Programs {
    pub(crate) fn load(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let mut loaded = BTreeMap::new();
        let fd = load::<CgroupSock>(ebpf, SOCKET_RELEASE, CgroupSock::load)?;
        loaded.insert(SOCKET_RELEASE, fd);
        for (name, _) in SOCKET_HOOKS {
            let fd = load::<CgroupSockAddr>(ebpf, name, CgroupSockAddr::load)?;
            loaded.insert(name, fd);
        }
        for name in PACKET_PROGRAMS {
            let fd = load::<SchedClassifier>(ebpf, name, SchedClassifier::load)?;
            loaded.insert(name, fd);
        }
        let xdp_refused = match load::<Xdp>(ebpf, XDP_PROGRAM, Xdp::load) {
            Ok(fd) => {
                loaded.insert(XDP_PROGRAM, fd);
                None
            }
            Err(error) => Some(error.to_string()),
        };
        Ok(Self {
            loaded,
            xdp_refused,
        })
    }

    pub(crate) fn fd(&self, name: &str) -> Result<BorrowedFd<'_>, Error> {
        let fd = self.loaded.get(name).ok_or_else(|| Error::Program {
            program: name.to_string(),
            detail: "not loaded".into(),
        })?;
        Ok(fd.as_fd())
    }

    /// See [`crate::Datapath::try_packet`].
    pub(crate) fn try_packet(
        &self,
        program: &str,
        ifindex: u32,
        frame: &[u8],
        repeat: u32,
    ) -> Result<PacketResult, Error> {
        /// `struct __sk_buff` up to `hwtstamp`; zero but for the interface.
        const SKB_LEN: usize = 192;
        const SKB_IFINDEX: usize = 40;
        /// `struct xdp_md`: where the frame ends, and the interface.
        const XDP_LEN: usize = 24;
        const XDP_END: usize = 4;
        const XDP_IFINDEX: usize = 12;
        const TC_VERDICTS: &[(u32, Verdict)] = &[
            (0, Verdict::Pass),
            (2, Verdict::Drop),
            (7, Verdict::Redirect),
        ];
        const XDP_VERDICTS: &[(u32, Verdict)] = &[
            (1, Verdict::Drop),
            (2, Verdict::Pass),
            (3, Verdict::Return),
            (4, Verdict::Redirect),
        ];
        let refused = |detail: String| Error::Program {
            program: program.to_string(),
            detail,
        };
        let fd = self.fd(program)?;
        let mut context = [0u8; SKB_LEN];
        let mut put = |at: usize, value: u32| {
            context[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        let (len, verdicts) = if program == XDP_PROGRAM {
            put(XDP_END, frame.len() as u32);
            put(XDP_IFINDEX, ifindex);
            (XDP_LEN, XDP_VERDICTS)
        } else if PACKET_PROGRAMS.contains(&program) {
            put(SKB_IFINDEX, ifindex);
            (SKB_LEN, TC_VERDICTS)
        } else {
            return Err(refused("not a packet program".into()));
        };
        let run = sys::test_run(fd, frame, &context[..len], repeat.max(1))
            .map_err(|error| Error::kernel("run program", program, error))?;
        let verdict = verdicts
            .iter()
            .find(|(value, _)| *value == run.returned)
            .map(|(_, verdict)| *verdict)
            .ok_or_else(|| refused(format!("verdict {}", run.returned)))?;
        Ok(PacketResult {
            verdict,
            frame: run.output,
            duration: run.duration,
        })
    }

    /// See [`crate::Datapath::program_costs`].
    pub(crate) fn costs(&self) -> Result<Vec<ProgramCost>, Error> {
        let cost = |(name, fd): (&&'static str, &OwnedFd)| {
            let (runs, ns) = sys::program_cost(fd.as_fd())
                .map_err(|error| Error::kernel("look at program", *name, error))?;
            Ok(ProgramCost {
                program: name,
                runs,
                time: Duration::from_nanos(ns),
            })
        };
        self.loaded.iter().map(cost).collect()
    }
}

fn load<'a, P>(
    ebpf: &'a mut Ebpf,
    name: &str,
    load: impl FnOnce(&mut P) -> Result<(), ProgramError>,
) -> Result<OwnedFd, Error>
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
    P: Loaded + 'a,
{
    let refused = |error: ProgramError| Error::Program {
        program: name.to_string(),
        detail: last_words(&error),
    };
    let program = ebpf.program_mut(name).ok_or_else(|| Error::Program {
        program: name.into(),
        detail: "not built".into(),
    })?;
    let program: &mut P = program.try_into().map_err(refused)?;
    load(program).map_err(refused)?;
    let fd = program.descriptor().map_err(refused)?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| Error::kernel("duplicate program", name, error))
}

/// What aya's types of programs have in common.
trait Loaded {
    fn descriptor(&self) -> Result<&ProgramFd, ProgramError>;
}

macro_rules! loaded {
    ($($name:ty),+) => {
        $(impl Loaded for $name {
            fn descriptor(&self) -> Result<&ProgramFd, ProgramError> {
                self.fd()
            }
        })+
    };
}

loaded!(CgroupSock, CgroupSockAddr, SchedClassifier, Xdp);

/// The verifier explains itself at the end.
fn last_words(error: &ProgramError) -> String {
    const LINES: usize = 25;
    let text = match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            format!("{io_error}\n{verifier_log}")
        }
        other => other.to_string(),
    };
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    lines[lines.len().saturating_sub(LINES)..].join("\n")
}
