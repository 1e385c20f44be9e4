//! Encryption at rest: what of the store is written encrypted, and under which keys it can be read
//! (`apiserver.config.k8s.io/v1 EncryptionConfiguration`).
//!
//! A value names how it was written, in upstream's form: `k8s:enc:aesgcm:v1:KEY:`, then the nonce and the sealed bytes;
//! `aescbc` and `secretbox` likewise, [`kms`] with more. The first provider's first key writes; every provider and key reads, so that keys can
//! be rotated: add the new key second, restart every server, make it the first, restart, write every object again.

mod kms;

use std::{collections::HashSet, path::PathBuf, time::Duration};

use aes::{
    Aes128, Aes192, Aes256,
    cipher::{BlockDecryptMut, BlockEncryptMut, KeyIvInit, block_padding::Pkcs7},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, Bytes, BytesMut};
use crypto_secretbox::{KeyInit, XSalsa20Poly1305, aead::Aead};
use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::Deserialize;

/// How every encrypted value begins.
const ENCRYPTED: &[u8] = b"k8s:enc:";
const SECRETBOX_NONCE: usize = 24;
const SECRETBOX_KEY: usize = 32;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_version: String,
    kind: String,
    #[serde(default)]
    resources: Vec<ResourceConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResourceConfiguration {
    resources: Vec<String>,
    providers: Vec<ProviderConfiguration>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProviderConfiguration {
    aesgcm: Option<Keys>,
    secretbox: Option<Keys>,
    aescbc: Option<Keys>,
    kms: Option<KmsConfiguration>,
    identity: Option<serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct KmsConfiguration {
    #[serde(default)]
    api_version: String,
    name: String,
    endpoint: String,
    timeout: Option<String>,
    /// Of v1; has no meaning for v2.
    cachesize: Option<i32>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    keys: Vec<NamedKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedKey {
    name: String,
    /// Base64.
    secret: String,
}

#[derive(Debug, thiserror::Error)]
pub enum EncryptionError {
    #[error("error decoding encryption provider configuration: {0}")]
    Unreadable(String),
    #[error("{field}: {why}")]
    Invalid { field: String, why: String },
}

/// What a stored value says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revealed {
    pub json: Bytes,
    /// It would be written otherwise now: under another key, or encrypted at all.
    pub stale: bool,
}

/// Which values are encrypted, and how. By default none.
#[derive(Default)]
pub struct Encryption {
    /// The first that matches a resource decides.
    rules: Vec<Rule>,
}

struct Rule {
    patterns: Vec<Pattern>,
    /// Never empty.
    providers: Vec<Provider>,
}

/// `secrets`, `deployments.apps`, `*.apps`, `*.` (the core group) or `*.*`.
struct Pattern {
    resource: String,
    group: String,
}

enum Provider {
    Identity,
    Sealed { prefix: String, keys: Vec<Key> },
    Kms(kms::Kms),
}

struct Key {
    name: String,
    cipher: Cipher,
}

enum Cipher {
    AesGcm(Box<LessSafeKey>),
    /// The key: a cipher is made of it for each value. Nothing says whether such a value was changed.
    AesCbc(Vec<u8>),
    Secretbox(Box<XSalsa20Poly1305>),
}

impl Encryption {
    /// Reads YAML or JSON.
    ///
    /// # Errors
    /// Says which field is wrong; never shows a secret.
    pub fn parse(text: &str) -> Result<Self, EncryptionError> {
        let configuration: Configuration = serde_saphyr::from_str(text)
            // The parser's message may quote the line, and the line may be a key.
            .map_err(|error| EncryptionError::Unreadable(first_line(&error.to_string())))?;
        if configuration.kind != "EncryptionConfiguration"
            || configuration.api_version != "apiserver.config.k8s.io/v1"
        {
            return Err(EncryptionError::Unreadable(
                "want apiVersion apiserver.config.k8s.io/v1 and kind EncryptionConfiguration"
                    .to_owned(),
            ));
        }
        if configuration.resources.is_empty() {
            return Err(invalid(
                "resources",
                "Required value: encryption config should have at least one resource",
            ));
        }
        let rules = configuration
            .resources
            .into_iter()
            .enumerate()
            .map(|(index, rule)| Rule::new(&format!("resources[{index}]"), rule))
            .collect::<Result<_, _>>()?;
        Ok(Self { rules })
    }

    /// Whether every key that writes is there.
    ///
    /// # Errors
    /// What a KMS plugin says, or that it says nothing.
    pub fn ready(&self) -> Result<(), String> {
        for rule in &self.rules {
            for provider in &rule.providers {
                if let Provider::Kms(kms) = provider {
                    kms.ready()?;
                }
            }
        }
        Ok(())
    }

    fn providers(&self, key: &str) -> &[Provider] {
        // `/registry/GROUP/RESOURCE/…`
        let mut parts = key.split('/').skip(2);
        let group = match parts.next().unwrap_or_default() {
            "core" => "",
            group => group,
        };
        let resource = parts.next().unwrap_or_default();
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.patterns.iter().any(|p| p.matches(resource, group)));
        rule.map_or(&[Provider::Identity], |rule| &rule.providers)
    }

    /// The form in which a value is stored.
    ///
    /// # Errors
    /// Only when the cipher refuses.
    pub fn seal(&self, key: &str, json: Bytes) -> Result<Bytes, String> {
        match self.providers(key).first() {
            None | Some(Provider::Identity) => Ok(json),
            Some(Provider::Kms(kms)) => kms.seal(key, &json),
            Some(Provider::Sealed { prefix, keys }) => {
                let first = keys.first().ok_or("there is no key")?;
                first.seal(prefix, key, &json)
            }
        }
    }

    /// What a stored value says.
    ///
    /// # Errors
    /// Why it cannot be read, in upstream's words.
    pub fn reveal(&self, key: &str, value: Bytes) -> Result<Revealed, String> {
        let providers = self.providers(key);
        for (index, provider) in providers.iter().enumerate() {
            match provider {
                Provider::Identity if !value.starts_with(ENCRYPTED) => {
                    return Ok(Revealed {
                        json: value,
                        stale: index > 0,
                    });
                }
                Provider::Identity => {}
                Provider::Kms(kms) => {
                    if let Some(stored) = value.strip_prefix(kms.prefix.as_bytes()) {
                        let (json, stale) = kms.open(key, stored)?;
                        return Ok(Revealed {
                            json: json.into(),
                            stale: stale || index > 0,
                        });
                    }
                }
                Provider::Sealed { prefix, keys } => {
                    let Some(named) = value.strip_prefix(prefix.as_bytes()) else {
                        continue;
                    };
                    for (at, candidate) in keys.iter().enumerate() {
                        let sealed = named
                            .strip_prefix(candidate.name.as_bytes())
                            .and_then(|rest| rest.strip_prefix(b":"));
                        if let Some(sealed) = sealed {
                            let json = candidate.open(key, sealed)?;
                            return Ok(Revealed {
                                json: json.into(),
                                stale: index > 0 || at > 0,
                            });
                        }
                    }
                    return Err(format!(
                        "no matching key was found for the provided {} transformer",
                        keys.first().map_or("", |key| key.cipher.name())
                    ));
                }
            }
        }
        Err(if value.starts_with(ENCRYPTED) {
            "identity transformer tried to read encrypted data".to_owned()
        } else {
            "no matching prefix found".to_owned()
        })
    }
}

fn invalid(field: &str, why: &str) -> EncryptionError {
    EncryptionError::Invalid {
        field: field.to_owned(),
        why: why.to_owned(),
    }
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

impl Rule {
    fn new(field: &str, configuration: ResourceConfiguration) -> Result<Self, EncryptionError> {
        if configuration.resources.is_empty() {
            return Err(invalid(&format!("{field}.resources"), "Required value"));
        }
        if configuration.providers.is_empty() {
            return Err(invalid(&format!("{field}.providers"), "Required value"));
        }
        let patterns = configuration.resources.iter().map(|text| {
            let (resource, group) = text.split_once('.').unwrap_or((text, ""));
            if text == "*" {
                let why = "Invalid value: \"*\": use '*.' to encrypt all the resources from core API group or *.* to encrypt all resources";
                return Err(invalid(&format!("{field}.resources"), why));
            }
            Ok(Pattern {
                resource: resource.to_owned(),
                group: group.to_owned(),
            })
        });
        let providers = configuration
            .providers
            .into_iter()
            .enumerate()
            .map(|(index, provider)| {
                Provider::new(&format!("{field}.providers[{index}]"), provider)
            });
        Ok(Self {
            patterns: patterns.collect::<Result<_, _>>()?,
            providers: providers.collect::<Result<_, _>>()?,
        })
    }
}

impl Pattern {
    fn matches(&self, resource: &str, group: &str) -> bool {
        let one = self.resource == "*" || self.resource == resource;
        one && (self.group == "*" || self.group == group)
    }
}

impl Provider {
    fn new(field: &str, configuration: ProviderConfiguration) -> Result<Self, EncryptionError> {
        let ProviderConfiguration {
            aesgcm,
            secretbox,
            aescbc,
            kms,
            identity,
        } = configuration;
        let sealed =
            |name, keys, cipher| Self::sealed(&format!("{field}.{name}"), name, keys, cipher);
        match (aesgcm, secretbox, aescbc, kms, identity) {
            (Some(keys), None, None, None, None) => sealed("aesgcm", keys, Cipher::aes_gcm),
            (None, Some(keys), None, None, None) => sealed("secretbox", keys, Cipher::secretbox),
            (None, None, Some(keys), None, None) => sealed("aescbc", keys, Cipher::aes_cbc),
            (None, None, None, Some(kms), None) => Self::kms(&format!("{field}.kms"), &kms),
            (None, None, None, None, Some(_)) => Ok(Self::Identity),
            (None, None, None, None, None) => Err(invalid(
                field,
                "Required value: provider does not contain any of the expected providers: KMS, AESGCM, AESCBC, Secretbox, Identity",
            )),
            _ => Err(invalid(
                field,
                "Invalid value: more than one provider specified in a single element, should split into different list elements",
            )),
        }
    }

    fn kms(field: &str, configuration: &KmsConfiguration) -> Result<Self, EncryptionError> {
        let KmsConfiguration {
            name,
            endpoint,
            timeout,
            ..
        } = configuration;
        if configuration.api_version != "v2" {
            let why = format!(
                "Invalid value: {:?}: unsupported apiVersion for KMS provider, only v2 is supported",
                configuration.api_version
            );
            return Err(invalid(&format!("{field}.apiVersion"), &why));
        }
        if name.is_empty() {
            let why = "Required value: name is a required field";
            return Err(invalid(&format!("{field}.name"), why));
        }
        if name.contains(':') {
            let why = format!("Invalid value: {name:?}: should not contain ':'");
            return Err(invalid(&format!("{field}.name"), &why));
        }
        if configuration.cachesize.is_some() {
            let why = "Invalid value: cachesize is not supported in v2";
            return Err(invalid(&format!("{field}.cachesize"), why));
        }
        let Some(socket) = endpoint
            .strip_prefix("unix://")
            .filter(|path| !path.is_empty())
        else {
            let why = format!(
                "Invalid value: {endpoint:?}: unsupported scheme for KMS provider: want unix://PATH"
            );
            return Err(invalid(&format!("{field}.endpoint"), &why));
        };
        let timeout = match timeout {
            None => kms::DEFAULT_TIMEOUT,
            Some(text) => text
                .parse::<jiff::SignedDuration>()
                .ok()
                .and_then(|duration| Duration::try_from(duration).ok())
                .filter(|timeout| !timeout.is_zero())
                .ok_or_else(|| {
                    let why = format!("Invalid value: {text:?}: should be a positive value");
                    invalid(&format!("{field}.timeout"), &why)
                })?,
        };
        // `@name` is a socket without a file.
        let socket = match socket.strip_prefix('@') {
            Some(name) => format!("\0{name}"),
            None => socket.to_owned(),
        };
        kms::Kms::start(name, PathBuf::from(socket), timeout)
            .map(Self::Kms)
            .map_err(|error| invalid(field, &format!("no thread for the plugin: {error}")))
    }

    fn sealed(
        field: &str,
        name: &str,
        keys: Keys,
        cipher: fn(&[u8]) -> Result<Cipher, String>,
    ) -> Result<Self, EncryptionError> {
        if keys.keys.is_empty() {
            return Err(invalid(&format!("{field}.keys"), "Required value"));
        }
        let mut names = HashSet::new();
        let mut read = Vec::new();
        for (index, key) in keys.keys.into_iter().enumerate() {
            let field = format!("{field}.keys[{index}]");
            if key.name.is_empty() {
                return Err(invalid(&format!("{field}.name"), "Required value"));
            }
            if key.name.contains(':') || !names.insert(key.name.clone()) {
                let why = format!(
                    "Invalid value: {:?}: must be unique and have no colon",
                    key.name
                );
                return Err(invalid(&format!("{field}.name"), &why));
            }
            let secret = STANDARD.decode(key.secret.trim()).map_err(|_| {
                let why = "Invalid value: \"REDACTED\": secrets must be base64 encoded";
                invalid(&format!("{field}.secret"), why)
            })?;
            let cipher =
                cipher(&secret).map_err(|why| invalid(&format!("{field}.secret"), &why))?;
            read.push(Key {
                name: key.name,
                cipher,
            });
        }
        Ok(Self::Sealed {
            prefix: format!("k8s:enc:{name}:v1:"),
            keys: read,
        })
    }
}

impl Cipher {
    fn aes_gcm(secret: &[u8]) -> Result<Self, String> {
        let algorithm = match secret.len() {
            16 => &AES_128_GCM,
            32 => &AES_256_GCM,
            other => {
                return Err(format!(
                    "Invalid value: \"REDACTED\": secret is not of the expected length, got {other}, expected one of [16 32]"
                ));
            }
        };
        let key = UnboundKey::new(algorithm, secret).map_err(|_| "Invalid value".to_owned())?;
        Ok(Self::AesGcm(Box::new(LessSafeKey::new(key))))
    }

    fn aes_cbc(secret: &[u8]) -> Result<Self, String> {
        match secret.len() {
            16 | 24 | 32 => Ok(Self::AesCbc(secret.to_vec())),
            other => Err(format!(
                "Invalid value: \"REDACTED\": secret is not of the expected length, got {other}, expected one of [16 24 32]"
            )),
        }
    }

    fn secretbox(secret: &[u8]) -> Result<Self, String> {
        XSalsa20Poly1305::new_from_slice(secret)
            .map(|cipher| Self::Secretbox(Box::new(cipher)))
            .map_err(|_| {
                format!(
                    "Invalid value: \"REDACTED\": secret is not of the expected length, got {}, expected one of [{SECRETBOX_KEY}]",
                    secret.len()
                )
            })
    }

    fn name(&self) -> &'static str {
        match self {
            Self::AesGcm(_) => "AES-GCM",
            Self::AesCbc(_) => "AES-CBC",
            Self::Secretbox(_) => "Secretbox",
        }
    }
}

impl Key {
    fn seal(&self, prefix: &str, key: &str, json: &[u8]) -> Result<Bytes, String> {
        let refused = |_| "the value cannot be encrypted".to_owned();
        let mut out = BytesMut::with_capacity(prefix.len() + self.name.len() + json.len() + 48);
        out.put_slice(prefix.as_bytes());
        out.put_slice(self.name.as_bytes());
        out.put_u8(b':');
        match &self.cipher {
            Cipher::AesGcm(cipher) => {
                let nonce: [u8; NONCE_LEN] = rand::random();
                let mut sealed = json.to_vec();
                // The key's path is sealed in: a value moved under another key does not open.
                let aad = Aad::from(key.as_bytes());
                cipher
                    .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), aad, &mut sealed)
                    .map_err(|_| "the value cannot be encrypted".to_owned())?;
                out.put_slice(&nonce);
                out.put_slice(&sealed);
            }
            Cipher::AesCbc(secret) => {
                let iv: [u8; CBC_IV] = rand::random();
                out.put_slice(&iv);
                out.put_slice(&cbc_sealed(secret, &iv, json)?);
            }
            Cipher::Secretbox(cipher) => {
                let nonce: [u8; SECRETBOX_NONCE] = rand::random();
                let sealed = cipher.encrypt(&nonce.into(), json).map_err(refused)?;
                out.put_slice(&nonce);
                out.put_slice(&sealed);
            }
        }
        Ok(out.freeze())
    }

    fn open(&self, key: &str, sealed: &[u8]) -> Result<Vec<u8>, String> {
        const SHORT: &str = "the stored data was shorter than the required size";
        match &self.cipher {
            Cipher::AesGcm(cipher) => {
                let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>().ok_or(SHORT)?;
                let mut opened = sealed.to_vec();
                let aad = Aad::from(key.as_bytes());
                let length = cipher
                    .open_in_place(Nonce::assume_unique_for_key(*nonce), aad, &mut opened)
                    .map_err(|_| "cipher: message authentication failed")?
                    .len();
                opened.truncate(length);
                Ok(opened)
            }
            Cipher::AesCbc(secret) => {
                let (iv, sealed) = sealed.split_first_chunk::<CBC_IV>().ok_or(SHORT)?;
                cbc_opened(secret, iv, sealed)
            }
            Cipher::Secretbox(cipher) => {
                let (nonce, sealed) = sealed.split_first_chunk::<SECRETBOX_NONCE>().ok_or(SHORT)?;
                cipher
                    .decrypt(&(*nonce).into(), sealed)
                    .map_err(|_| "secretbox: message authentication failed".to_owned())
            }
        }
    }
}

const CBC_IV: usize = 16;

fn cbc_sealed(secret: &[u8], iv: &[u8; CBC_IV], json: &[u8]) -> Result<Vec<u8>, String> {
    let length = |_| "the key has the wrong length".to_owned();
    Ok(match secret.len() {
        16 => cbc::Encryptor::<Aes128>::new_from_slices(secret, iv)
            .map_err(length)?
            .encrypt_padded_vec_mut::<Pkcs7>(json),
        24 => cbc::Encryptor::<Aes192>::new_from_slices(secret, iv)
            .map_err(length)?
            .encrypt_padded_vec_mut::<Pkcs7>(json),
        _ => cbc::Encryptor::<Aes256>::new_from_slices(secret, iv)
            .map_err(length)?
            .encrypt_padded_vec_mut::<Pkcs7>(json),
    })
}

fn cbc_opened(secret: &[u8], iv: &[u8; CBC_IV], sealed: &[u8]) -> Result<Vec<u8>, String> {
    let length = |_| "the key has the wrong length".to_owned();
    match secret.len() {
        16 => cbc::Decryptor::<Aes128>::new_from_slices(secret, iv)
            .map_err(length)?
            .decrypt_padded_vec_mut::<Pkcs7>(sealed),
        24 => cbc::Decryptor::<Aes192>::new_from_slices(secret, iv)
            .map_err(length)?
            .decrypt_padded_vec_mut::<Pkcs7>(sealed),
        _ => cbc::Decryptor::<Aes256>::new_from_slices(secret, iv)
            .map_err(length)?
            .decrypt_padded_vec_mut::<Pkcs7>(sealed),
    }
    .map_err(|_| "invalid PKCS7 data (bad padding)".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "/registry/core/secrets/default/a";
    const K1: &str = "{name: k1, secret: AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=}";
    const K2: &str = "{name: k2, secret: AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=}";
    /// Another key under the name of the first.
    const K1_WRONG: &str = "{name: k1, secret: AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=}";

    fn parse(resources: &str, providers: &str) -> Result<Encryption, EncryptionError> {
        Encryption::parse(&format!(
            "apiVersion: apiserver.config.k8s.io/v1\nkind: EncryptionConfiguration\n\
             resources:\n- resources: [{resources}]\n  providers: [{providers}]\n"
        ))
    }

    fn encryption(providers: &str) -> Encryption {
        parse("secrets", providers).unwrap()
    }

    fn json() -> Bytes {
        Bytes::from_static(br#"{"kind":"Secret","metadata":{}}"#)
    }

    fn revealed(stale: bool) -> Result<Revealed, String> {
        Ok(Revealed {
            json: json(),
            stale,
        })
    }

    #[test]
    fn keys_are_rotated_and_plain_values_are_read() {
        for cipher in ["aesgcm", "secretbox", "aescbc"] {
            let old = encryption(&format!(
                "{{{cipher}: {{keys: [{K1}]}}}}, {{identity: {{}}}}"
            ));
            let sealed = old.seal(SECRET, json()).unwrap();
            let prefix = format!("k8s:enc:{cipher}:v1:k1:");
            assert!(sealed.starts_with(prefix.as_bytes()));
            assert!(!sealed.windows(6).any(|w| w == b"Secret"));
            assert_eq!(old.reveal(SECRET, sealed.clone()), revealed(false));
            assert_eq!(old.reveal(SECRET, json()), revealed(true));
            let rotated = encryption(&format!("{{{cipher}: {{keys: [{K2}, {K1}]}}}}"));
            assert_eq!(rotated.reveal(SECRET, sealed.clone()), revealed(true));
            let fresh = rotated.seal(SECRET, json()).unwrap();
            assert_eq!(rotated.reveal(SECRET, fresh.clone()), revealed(false));
            assert_ne!(rotated.seal(SECRET, json()).unwrap(), fresh);
            assert_eq!(
                rotated.reveal(SECRET, json()),
                Err("no matching prefix found".into())
            );
            // Back to plain text: the old values are read and count as stale.
            let plain = encryption(&format!(
                "{{identity: {{}}}}, {{{cipher}: {{keys: [{K1}]}}}}"
            ));
            assert_eq!(plain.seal(SECRET, json()).unwrap(), json());
            assert_eq!(plain.reveal(SECRET, sealed), revealed(true));
        }
    }

    #[test]
    fn a_wrong_key_says_so() {
        for cipher in ["aesgcm", "secretbox"] {
            let sealed = encryption(&format!("{{{cipher}: {{keys: [{K1}]}}}}"))
                .seal(SECRET, json())
                .unwrap();
            let why = |providers: &str| encryption(providers).reveal(SECRET, sealed.clone());
            let wrong = why(&format!("{{{cipher}: {{keys: [{K1_WRONG}]}}}}")).unwrap_err();
            assert!(wrong.contains("message authentication failed"), "{wrong}");
            let unknown = why(&format!("{{{cipher}: {{keys: [{K2}]}}}}")).unwrap_err();
            assert!(
                unknown.starts_with("no matching key was found"),
                "{unknown}"
            );
            assert_eq!(
                why("{identity: {}}").unwrap_err(),
                "identity transformer tried to read encrypted data"
            );
            assert!(
                Encryption::default()
                    .reveal(SECRET, sealed.clone())
                    .is_err()
            );
            let cut = sealed.slice(..sealed.len().min(30));
            assert!(
                encryption(&format!("{{{cipher}: {{keys: [{K1}]}}}}"))
                    .reveal(SECRET, cut)
                    .is_err()
            );
        }
        let sealed = encryption(&format!("{{aesgcm: {{keys: [{K1}]}}}}"));
        let moved = sealed.seal(SECRET, json()).unwrap();
        assert!(
            sealed
                .reveal("/registry/core/secrets/default/b", moved)
                .is_err()
        );
    }

    #[test]
    fn resources_are_matched() {
        let check = |pattern: &str, key: &str, expected: bool| {
            let encryption = parse(pattern, &format!("{{aesgcm: {{keys: [{K1}]}}}}")).unwrap();
            let sealed = encryption.seal(key, json()).unwrap();
            assert_eq!(sealed != json(), expected, "{pattern} {key}");
        };
        check("secrets", SECRET, true);
        check("secrets", "/registry/core/configmaps/a/b", false);
        check("deployments.apps", "/registry/apps/deployments/a/b", true);
        check("'*.apps'", "/registry/apps/daemonsets/a/b", true);
        check("'*.apps'", SECRET, false);
        check("'*.'", SECRET, true);
        check("'*.*'", "/registry/example.com/widgets/a/b", true);
    }

    #[test]
    fn what_is_wrong_is_named_and_no_secret_shown() {
        let check = |providers: &str, expected: &str| {
            let Err(error) = parse("secrets", providers) else {
                panic!("{providers} is accepted")
            };
            let error = error.to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        };
        check("", "resources[0].providers: Required value");
        check(
            "{kms: {apiVersion: v1, name: x, endpoint: 'unix:///x'}}",
            "resources[0].providers[0].kms.apiVersion: Invalid value: \"v1\"",
        );
        check(
            "{kms: {apiVersion: v2, name: x, endpoint: 'http://x'}}",
            "kms.endpoint: Invalid value: \"http://x\": unsupported scheme",
        );
        check(
            "{kms: {apiVersion: v2, name: x, endpoint: 'unix:///x', timeout: -1s}}",
            "kms.timeout: Invalid value: \"-1s\"",
        );
        check(
            "{aescbc: {keys: [{name: a, secret: aHVudGVyMg==}]}}",
            "got 7, expected one of [16 24 32]",
        );
        check("{aesgcm: {keys: []}}", "keys: Required value");
        check(
            "{aesgcm: {keys: [{name: a, secret: hunter2}]}}",
            "resources[0].providers[0].aesgcm.keys[0].secret",
        );
        check(
            "{secretbox: {keys: [{name: a, secret: aHVudGVyMg==}]}}",
            "got 7, expected one of [32]",
        );
        check(
            "{identity: {}, aesgcm: {keys: []}}",
            "more than one provider",
        );
        check("{}", "does not contain any of the expected providers");
    }
}
