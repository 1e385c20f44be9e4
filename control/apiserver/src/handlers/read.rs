//! get and list.

use std::sync::Arc;

use axum::response::Response;
use base64::{
    Engine,
    alphabet::URL_SAFE,
    engine::{
        DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig, general_purpose::URL_SAFE_NO_PAD,
    },
};
use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::selection::Selection;
use crate::{
    cache::List,
    context::Ctx,
    crd::conversion,
    options::{ListOptions, VersionMatch},
    registry::Resource,
    respond::{self, ListHead, Object, Rendering},
    status::{Result, Status},
    storage::read_object,
};

pub async fn get(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let storage = &ctx.api.storage;
    match ctx.query.get("resourceVersion") {
        "0" => {}
        "" => {
            storage.fresh().await?;
        }
        version => storage.wait_until(revision(version)?).await?,
    }
    let key = resource.key(&ctx.info.namespace, &ctx.info.name);
    let Some(entry) = storage.cache.get(&key) else {
        storage.readable(&key)?;
        return Err(Status::missing(resource, &ctx.info.name));
    };
    let object = if resource.def.conversion.is_some() {
        Object::Value(read_object(resource, &entry.bytes())?)
    } else {
        let shown = conversion::present(&ctx.api, resource, vec![entry.clone()]).await?;
        Object::Bytes(shown.first().unwrap_or(&entry).bytes())
    };
    ctx.object(resource, StatusCode::OK, object, &out)
}

pub async fn list(ctx: &Ctx, resource: &Arc<Resource>) -> Result<Response> {
    let out = ctx.output(resource)?;
    let rendering = Rendering::of_list(ctx, resource, out)?;
    let options = ListOptions::parse(&ctx.query, false)?;
    let selection = Selection::new(ctx, resource, &options)?;
    ctx.api.storage.readable(&selection.prefix)?;
    let page = page(ctx, &selection, &options).await?;
    let continue_token = page
        .next()
        .map(|key| ContinueToken::after(&selection.prefix, key, page.revision));
    let remaining = (page.more && selection.is_everything()).then_some(page.remaining);
    let head = ListHead {
        resource_version: page.revision.to_string(),
        continue_token: continue_token.unwrap_or_default(),
        remaining,
    };
    let entries = conversion::present(&ctx.api, resource, page.entries).await?;
    respond::list(ctx, &rendering, &head, entries)
}

/// One page of the objects selected, as of the revision that the options ask for.
pub async fn page(ctx: &Ctx, selection: &Selection, options: &ListOptions) -> Result<List> {
    let storage = &ctx.api.storage;
    let cache = &storage.cache;
    let filter = |entry: &crate::cache::Entry| selection.matches(entry);
    let mut limit = options.limit;
    if options.resource_version == "0" {
        // Upstream answers these from its cache, which knows no pages.
        limit = 0;
    }
    if !options.continue_token.is_empty() {
        if !matches!(options.resource_version.as_str(), "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = ContinueToken::parse(&options.continue_token)?;
        let start = format!("{}{}", selection.prefix, token.start);
        let start = start.strip_suffix('\0').unwrap_or(&start);
        if token.revision <= 0 {
            storage.fresh().await?;
            return Ok(cache.list(&selection.prefix, Some(start), limit, filter));
        }
        let at = token.revision.unsigned_abs();
        storage.wait_until(at).await?;
        let snapshot = cache.snapshot_at(&selection.prefix, at).await;
        let snapshot = snapshot.map_err(|error| {
            let failure: crate::status::Failure = error.into();
            if failure.code == 410 {
                Status::continue_expired(&token.inconsistent())
            } else {
                failure
            }
        })?;
        return Ok(snapshot.list(Some(start), limit, filter));
    }
    match options.resource_version.as_str() {
        "" => {
            storage.fresh().await?;
        }
        "0" => {}
        version => {
            let wanted = revision(version)?;
            storage.wait_until(wanted).await?;
            let exact = options.version_match == VersionMatch::Exact
                || (options.version_match == VersionMatch::Unset && options.limit > 0);
            if exact {
                let snapshot = cache.snapshot_at(&selection.prefix, wanted).await?;
                return Ok(snapshot.list(None, limit, filter));
            }
        }
    }
    Ok(cache.list(&selection.prefix, None, limit, filter))
}

/// A `resourceVersion` parameter.
pub fn revision(text: &str) -> Result<u64> {
    text.parse().map_err(|_| {
        Status::unknown(format!(
            "resourceVersion: Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// Where the next page starts, and of which revision it is.
#[derive(Debug, Serialize, Deserialize)]
struct ContinueToken {
    #[serde(rename = "v")]
    version: String,
    /// -1: whatever is newest.
    #[serde(rename = "rv")]
    revision: i64,
    /// Relative to the list's prefix; the first key that the page may have.
    start: String,
}

const TOKEN_VERSION: &str = "meta.k8s.io/v1";

impl ContinueToken {
    fn after(prefix: &str, key: &str, revision: u64) -> String {
        let token = Self {
            version: TOKEN_VERSION.to_owned(),
            revision: i64::try_from(revision).unwrap_or(i64::MAX),
            start: format!("{}\0", key.strip_prefix(prefix).unwrap_or(key)),
        };
        token.encode()
    }

    fn inconsistent(&self) -> String {
        let token = Self {
            version: self.version.clone(),
            revision: -1,
            start: self.start.clone(),
        };
        token.encode()
    }

    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn parse(text: &str) -> Result<Self> {
        let refuse = |why: String| {
            Status::bad_request(format!(
                "invalid continue token: continue key is not valid: {why}"
            ))
        };
        // As lenient as Go about the bits after the last whole byte.
        let lenient = GeneralPurposeConfig::new()
            .with_decode_allow_trailing_bits(true)
            .with_decode_padding_mode(DecodePaddingMode::Indifferent);
        let bytes = GeneralPurpose::new(&URL_SAFE, lenient)
            .decode(text)
            .map_err(|error| {
                let at = match error {
                    base64::DecodeError::InvalidByte(at, _)
                    | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                    _ => text.len(),
                };
                refuse(format!("illegal base64 data at input byte {at}"))
            })?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| match bytes.first() {
            Some(b'{') => refuse("unexpected end of JSON input".to_owned()),
            None => refuse("unexpected end of JSON input".to_owned()),
            Some(byte) => {
                let shown = if byte.is_ascii_graphic() {
                    char::from(*byte).to_string()
                } else {
                    format!("\\u{byte:04x}")
                };
                refuse(format!(
                    "invalid character '{shown}' looking for beginning of value"
                ))
            }
        })?;
        if token.version != TOKEN_VERSION {
            let version = &token.version;
            return Err(refuse(format!(
                "server does not recognize this encoded version {version:?}"
            )));
        }
        if token.start.is_empty() || token.start.split('/').any(|part| part == "..") {
            return Err(refuse(format!(
                "{:?} is not a valid start key",
                token.start
            )));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_garbage_is_refused() {
        let token = ContinueToken::after("/registry/core/pods/", "/registry/core/pods/a/b", 7);
        let parsed = ContinueToken::parse(&token).expect("own token");
        assert_eq!((parsed.revision, parsed.start.as_str()), (7, "a/b\0"));
        let refusal = ContinueToken::parse("garbage").expect_err("garbage");
        assert_eq!(
            refusal.message,
            "invalid continue token: continue key is not valid: invalid character '\\u0081' looking for beginning of value"
        );
    }
}
