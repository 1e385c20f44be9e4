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
