//! Who may use an image that this node has pulled: whoever could have pulled it (KEP-2535).
//!
//! Without it a pod of anybody's could run the private image of somebody else who was here before. What was loaded or
//! built on the node is everybody's: kubelet's `NeverVerifyPreloadedImages`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::images::{Credential, repository};

const FILE: &str = "pulled-images.json";

#[derive(Debug, Default)]
pub struct Pulled {
    file: PathBuf,
    books: Mutex<Books>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Books {
    /// References whose pull has begun. What came of it is not known if the agent died then.
    pulling: BTreeSet<String>,
    /// By image id and repository.
    pulled: BTreeMap<String, BTreeMap<String, Access>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Access {
    /// It was pulled without credentials.
    everybody: bool,
    /// Uids of secrets.
    secrets: BTreeSet<String>,
    /// Hashes of credentials.
    credentials: BTreeSet<String>,
}

impl Pulled {
    pub fn open(state_dir: &Path) -> Self {
        let file = state_dir.join(FILE);
        let books = fs::read(&file).ok();
        let books = books.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self {
            file,
            books: Mutex::new(books.unwrap_or_default()),
        }
    }

    /// Whether somebody with these credentials may use the image that is there. If not, a pull must show it.
    pub fn may_use(&self, reference: &str, id: &str, credentials: &[Credential]) -> bool {
        let books = self.books.lock();
        let Some(record) = books.pulled.get(id) else {
            return !books.pulling.contains(reference);
        };
        record.get(repository(reference)).is_some_and(|access| {
            let fits = |c: &Credential| {
                access.secrets.contains(&c.secret_uid) || access.credentials.contains(&c.hash())
            };
            access.everybody || credentials.iter().any(fits)
        })
    }

    pub fn begin(&self, reference: &str) {
        let mut books = self.books.lock();
        if books.pulling.insert(reference.to_owned()) {
            self.keep(&books);
        }
    }

    /// Nothing came of a pull.
    pub fn failed(&self, reference: &str) {
        let mut books = self.books.lock();
        books.pulling.remove(reference);
        self.keep(&books);
    }

    /// `with`: what the registry asked for. `present`: the ids of all images, if they are known; others are forgotten.
    pub fn succeeded(
        &self,
        reference: &str,
        id: &str,
        with: Option<&Credential>,
        present: Option<&BTreeSet<String>>,
    ) {
        let mut books = self.books.lock();
        books.pulling.remove(reference);
        if let Some(present) = present {
            books.pulled.retain(|known, _| present.contains(known));
        }
        let record = books.pulled.entry(id.to_owned()).or_default();
        let access = record.entry(repository(reference).to_owned()).or_default();
        match with {
            None => access.everybody = true,
            Some(credential) => {
                access.secrets.insert(credential.secret_uid.clone());
                access.credentials.insert(credential.hash());
            }
        }
        self.keep(&books);
    }

    fn keep(&self, books: &Books) {
        let write = || -> io::Result<()> {
            let next = self.file.with_extension("next");
            fs::write(&next, serde_json::to_vec(books)?)?;
            fs::rename(&next, &self.file)
        };
        if let Err(e) = write() {
            warn!(file = %self.file.display(), error = %e, "cannot keep who may use which image");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::RegistryAuth;

    fn credential(secret_uid: &str, password: &str) -> Credential {
        Credential {
            secret_uid: secret_uid.into(),
            auth: RegistryAuth {
                username: "fred".into(),
                password: password.into(),
                server: "r.example.org".into(),
                ..Default::default()
            },
        }
    }

    #[test]
    fn an_image_is_for_those_who_could_pull_it() {
        let dir = tempfile::tempdir().unwrap();
        let (image, id) = ("r.example.org/a:1", "sha256:a");
        let pulled = Pulled::open(dir.path());
        assert!(pulled.may_use(image, id, &[]), "it was there before");
        pulled.begin(image);
        // The agent dies.
        let pulled = Pulled::open(dir.path());
        assert!(!pulled.may_use(image, id, &[]), "who has pulled it?");
        let own = credential("one", "secret");
        let present = BTreeSet::from([id.to_owned()]);
        pulled.succeeded(image, id, Some(&own), Some(&present));
        let pulled = Pulled::open(dir.path());
        let may = |with: &[Credential]| pulled.may_use(image, id, with);
        assert!(!may(&[]));
        assert!(!may(&[credential("other", "guessed")]));
        assert!(may(&[credential("one", "changed since")]));
        assert!(may(&[credential("other", "secret")]));
        assert!(!pulled.may_use("elsewhere.example.org/a:1", id, &[own]));
        pulled.succeeded(image, id, None, Some(&present));
        assert!(may(&[]));
        let present = BTreeSet::from(["sha256:b".to_owned()]);
        pulled.succeeded("b", "sha256:b", None, Some(&present));
        assert!(may(&[]), "removed and loaded by somebody");
    }
}
