use std::io;
use std::path::PathBuf;

/// What was being done to which object; the cause is the source.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot load the eBPF programs")]
    Load(#[source] Box<aya::EbpfError>),
    /// The verifier's or the kernel's last words are in `detail`.
    #[error("the kernel refuses program {program}: {detail}")]
    Program { program: String, detail: String },
    #[error("map {0} is not in the object file")]
    MissingMap(String),
    #[error("cannot {action} {object}")]
    Kernel {
        action: &'static str,
        object: String,
        source: io::Error,
    },
    #[error("cannot {action} {}", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// A pin that was made by something else.
    #[error(
        "{} is not a map of this agent's ({found}; {expected} is needed): another program's, or damaged. \
         `skep-agent cleanup` removes it, and with it the connections that are translated now",
        path.display()
    )]
    Layout {
        path: PathBuf,
        found: String,
        expected: String,
    },
    #[error(
        "another agent runs this node's network: it holds {}. Stop it, or give this one a --bpf-dir and \
         --cgroup-parent of its own",
        .0.display()
    )]
    Occupied(PathBuf),
    /// The named limit is reached; what is programmed already keeps working.
    #[error("{table} is full ({limit} entries): {hint}")]
    Full {
        table: &'static str,
        limit: u32,
        hint: &'static str,
    },
}

impl Error {
    pub(crate) fn kernel(
        action: &'static str,
        object: impl Into<String>,
        source: io::Error,
    ) -> Self {
        Self::Kernel {
            action,
            object: object.into(),
            source,
        }
    }

    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::File {
            action,
            path: path.into(),
            source,
        }
    }
}
