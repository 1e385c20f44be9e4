//! KMS v2 (KEP-3299): values are encrypted under keys made from a seed, and the seed is stored beside them, encrypted by a
//! plugin that holds the key encryption key: a gRPC server behind a Unix socket.
//!
//! ```text
//! value ──AES-256-GCM under HKDF(seed, info)──► stored: EncryptedObject {info, nonce, sealed, key id, seed encrypted}
//!                              seed ──plugin.Encrypt──┘
//! ```
//!
//! The plugin is asked at the start, once for each seed that is read and not yet known, and whether its key has changed:
//! never for a single value. A thread of its own talks to it, because values are sealed and revealed where nothing waits.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{Arc, mpsc as answers},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use parking_lot::{Condvar, Mutex};
use prost::Message;
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf,
};
use tokio::sync::mpsc as commands;
use tonic::transport::{Channel, Endpoint};

/// How often the plugin is asked for the state of its key, and how often while it does not answer.
const STATUS_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
pub(super) const DEFAULT_TIMEOUT: Duration = Duration::from_secs(3);
/// Most seeds that are asked for at once, and that are remembered.
const MAX_ASKED: usize = 64;
const MAX_REMEMBERED: usize = 1000;
const SEED_BYTES: usize = 32;
const INFO_BYTES: usize = 32;
/// `HKDF_SHA256_XNONCE_AES_GCM_SEED`; 0, a plain key, is what older servers wrote.
const FROM_SEED: i32 = 1;

/// What is stored of a value.
#[derive(Clone, PartialEq, Message)]
struct EncryptedObject {
    #[prost(bytes = "vec", tag = "1")]
    data: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(bytes = "vec", tag = "3")]
    source: Vec<u8>,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
    #[prost(int32, tag = "5")]
    source_type: i32,
}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

#[derive(Clone, PartialEq, Message)]
struct StatusResponse {
    #[prost(string, tag = "1")]
    version: String,
    #[prost(string, tag = "2")]
    healthz: String,
    #[prost(string, tag = "3")]
    key_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "4")]
    annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct DecryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct EncryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    plaintext: Vec<u8>,
    #[prost(string, tag = "2")]
    uid: String,
}

#[derive(Clone, PartialEq, Message)]
struct EncryptResponse {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(btree_map = "string, bytes", tag = "3")]
    annotations: BTreeMap<String, Vec<u8>>,
}

/// What new values are sealed with.
struct Current {
    seed: [u8; SEED_BYTES],
    key_id: String,
    source: Vec<u8>,
    annotations: BTreeMap<String, Vec<u8>>,
}

#[derive(Default)]
struct State {
    current: Option<Arc<Current>>,
    /// Why there is none.
    trouble: String,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// A seed to decrypt, and where to.
struct Ask {
    request: DecryptRequest,
    answer: answers::SyncSender<Result<Vec<u8>, String>>,
}

/// One plugin.
pub(super) struct Kms {
    /// `k8s:enc:kms:v2:NAME:`
    pub prefix: String,
    timeout: Duration,
    shared: Arc<Shared>,
    asks: commands::Sender<Ask>,
    /// Seeds by how they are stored.
    seeds: Mutex<HashMap<Vec<u8>, Vec<u8>>>,
}

impl Kms {
    /// # Errors
    /// No thread can be started.
    pub fn start(name: &str, socket: PathBuf, timeout: Duration) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (asks, asked) = commands::channel(MAX_ASKED);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let own = shared.clone();
        std::thread::Builder::new()
            .name(format!("kms-{name}"))
            .spawn(move || runtime.block_on(talk(socket, timeout, &own, asked)))?;
        Ok(Self {
            prefix: format!("k8s:enc:kms:v2:{name}:"),
            timeout,
            shared,
            asks,
            seeds: Mutex::default(),
        })
    }

    /// Waits for the plugin's first answer, at most for its timeout; not for one that is known not to be well.
    fn current(&self) -> Result<Arc<Current>, String> {
        let until = Instant::now() + self.timeout;
        let mut state = self.shared.state.lock();
        loop {
            if let Some(current) = &state.current {
                return Ok(current.clone());
            }
            let late = state.trouble.is_empty()
                && self
                    .shared
                    .changed
                    .wait_until(&mut state, until)
                    .timed_out();
            if late || (state.current.is_none() && !state.trouble.is_empty()) {
                let why = &state.trouble;
                return Err(format!("the KMS plugin gave no key: {why}"));
            }
        }
    }

    /// Whether values can be sealed.
    pub fn ready(&self) -> Result<(), String> {
        self.current().map(drop)
    }

    pub fn seal(&self, key: &str, json: &[u8]) -> Result<Bytes, String> {
        let current = self.current()?;
        let info: [u8; INFO_BYTES] = rand::random();
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = json.to_vec();
        derived(&current.seed, &info)?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(key.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| "the value cannot be encrypted")?;
        let object = EncryptedObject {
            data: [info.as_slice(), &nonce, &sealed].concat(),
            key_id: current.key_id.clone(),
            source: current.source.clone(),
            annotations: current.annotations.clone(),
            source_type: FROM_SEED,
        };
        let mut out = self.prefix.clone().into_bytes();
        out.extend(object.encode_to_vec());
        Ok(out.into())
    }

    /// The value, and whether it would be written under another key now.
    pub fn open(&self, key: &str, stored: &[u8]) -> Result<(Vec<u8>, bool), String> {
        let object = EncryptedObject::decode(stored)
            .map_err(|error| format!("the stored data is no EncryptedObject: {error}"))?;
        let current = self.current()?;
        let seed = self.seed(&object, &current)?;
        let short = "the stored data was shorter than the required size";
        let (cipher, rest) = if object.source_type == FROM_SEED {
            let (info, rest) = object.data.split_first_chunk::<INFO_BYTES>().ok_or(short)?;
            (derived(&seed, info)?, rest)
        } else {
            (cipher(&seed)?, object.data.as_slice())
        };
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>().ok_or(short)?;
        let mut opened = sealed.to_vec();
        let length = cipher
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(key.as_bytes()),
                &mut opened,
            )
            .map_err(|_| "cipher: message authentication failed")?
            .len();
        opened.truncate(length);
        let stale = current.key_id != object.key_id || object.source_type != FROM_SEED;
        Ok((opened, stale))
    }

    /// What an object's key is made from: known, or asked for.
    fn seed(&self, object: &EncryptedObject, current: &Current) -> Result<Vec<u8>, String> {
        if current.source == object.source {
            return Ok(current.seed.to_vec());
        }
        if let Some(seed) = self.seeds.lock().get(&object.source) {
            return Ok(seed.clone());
        }
        let (answer, answered) = answers::sync_channel(1);
        let ask = Ask {
            request: DecryptRequest {
                ciphertext: object.source.clone(),
                uid: uid(),
                key_id: object.key_id.clone(),
                annotations: object.annotations.clone(),
            },
            answer,
        };
        let busy = |_| "the KMS plugin has too much to answer".to_owned();
        self.asks.try_send(ask).map_err(busy)?;
        let late = |_| "the KMS plugin did not answer in time".to_owned();
        // The thread has a timeout of its own: this one is for a thread that is gone.
        let seed = answered.recv_timeout(self.timeout * 2).map_err(late)??;
        let mut seeds = self.seeds.lock();
        if seeds.len() >= MAX_REMEMBERED {
            seeds.clear();
        }
        seeds.insert(object.source.clone(), seed.clone());
        Ok(seed)
    }
}

fn uid() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn cipher(key: &[u8]) -> Result<LessSafeKey, String> {
    let key = UnboundKey::new(&AES_256_GCM, key);
    key.map(LessSafeKey::new)
        .map_err(|_| "the KMS plugin gave a key of the wrong length".to_owned())
}

/// The key for one value: HKDF-Expand with SHA-256 (RFC 5869 §2.3).
fn derived(seed: &[u8], info: &[u8]) -> Result<LessSafeKey, String> {
    struct Length;
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            SEED_BYTES
        }
    }
    let mut key = [0; SEED_BYTES];
    hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, seed)
        .expand(&[info], Length)
        .and_then(|expanded| expanded.fill(&mut key))
        .map_err(|_| "no key can be derived".to_owned())?;
    cipher(&key)
}

/// Asks the plugin until nobody is left who wants to know.
async fn talk(
    socket: PathBuf,
    timeout: Duration,
    shared: &Shared,
    mut asked: commands::Receiver<Ask>,
) {
    // The address is never used: the connector knows the socket.
    let channel = Endpoint::from_static("http://kms.invalid").connect_with_connector_lazy(
        tower::service_fn(move |_: http::Uri| {
            let socket = socket.clone();
            async move {
                let stream = tokio::net::UnixStream::connect(socket).await?;
                Ok::<_, std::io::Error>(TokioIo::new(stream))
            }
        }),
    );
    let plugin = Plugin { channel, timeout };
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            ask = asked.recv() => {
                let Some(Ask { request, answer }) = ask else { return };
                let seed: Result<DecryptResponse, _> = plugin.call("Decrypt", request).await;
                // Nobody may wait for it any longer.
                let _late = answer.send(seed.map(|seed| seed.plaintext));
            }
            () = tokio::time::sleep_until(next) => {
                let known = shared.state.lock().current.clone();
                let wait = match plugin.renewed(known.as_deref()).await {
                    Ok(renewed) => {
                        if let Some(current) = renewed {
                            shared.state.lock().current = Some(Arc::new(current));
                        }
                        STATUS_INTERVAL
                    }
                    Err(why) => {
                        tracing::warn!(%why, "the KMS plugin is not well");
                        shared.state.lock().trouble = why;
                        RETRY_INTERVAL
                    }
                };
                shared.changed.notify_all();
                next = tokio::time::Instant::now() + wait;
            }
        }
    }
}

struct Plugin {
    channel: Channel,
    timeout: Duration,
}

impl Plugin {
    /// A new seed, if there is none or the plugin's key is another one now.
    async fn renewed(&self, known: Option<&Current>) -> Result<Option<Current>, String> {
        let status: StatusResponse = self.call("Status", StatusRequest {}).await?;
        if !matches!(status.version.as_str(), "v2" | "v2beta1") {
            return Err(format!("it speaks version {:?}", status.version));
        }
        if status.healthz != "ok" {
            return Err(format!("it says {:?} of its health", status.healthz));
        }
        if known.is_some_and(|known| known.key_id == status.key_id) {
            return Ok(None);
        }
        let seed: [u8; SEED_BYTES] = rand::random();
        let request = EncryptRequest {
            plaintext: seed.to_vec(),
            uid: uid(),
        };
        let encrypted: EncryptResponse = self.call("Encrypt", request).await?;
        Ok(Some(Current {
            seed,
            key_id: encrypted.key_id,
            source: encrypted.ciphertext,
            annotations: encrypted.annotations,
        }))
    }

    async fn call<Request, Response>(
        &self,
        method: &'static str,
        request: Request,
    ) -> Result<Response, String>
    where
        Request: Message + 'static,
        Response: Message + Default + 'static,
    {
        let path = PathAndQuery::try_from(format!("/v2.KeyManagementService/{method}"))
            .map_err(|error| error.to_string())?;
        let mut grpc = tonic::client::Grpc::new(self.channel.clone());
        let called = async {
            let away = |error: tonic::transport::Error| format!("{method}: {error}");
            grpc.ready().await.map_err(away)?;
            let codec = tonic_prost::ProstCodec::<Request, Response>::default();
            let answered = grpc.unary(tonic::Request::new(request), path, codec).await;
            let answered = answered.map_err(|status| format!("{method}: {}", status.message()))?;
            Ok(answered.into_inner())
        };
        match tokio::time::timeout(self.timeout, called).await {
            Ok(answered) => answered,
            Err(_) => Err(format!("{method}: it did not answer in time")),
        }
    }
}
