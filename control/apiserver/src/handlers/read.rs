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
    cache::{Entry, List, Snapshot},
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
    let page = page(ctx, resource, &selection, &options).await?;
    let continue_token = page
        .next()
        .map(|key| ContinueToken::after(&selection.prefix, key, page.revision));
    let remaining = (page.more && selection.is_everything()).then_some(page.remaining);
    let head = ListHead {
        resource_version: page.revision.to_string(),
        continue_token: continue_token.unwrap_or_default(),
        remaining,
    };
    respond::list(ctx, &rendering, &head, page.entries)
}

/// One page of the objects selected, as of the revision that the options ask for, in the row's form.
pub async fn page(
    ctx: &Ctx,
    resource: &Resource,
    selection: &Selection,
    options: &ListOptions,
) -> Result<List> {
    let (snapshot, after) = snapshot(ctx, selection, options).await?;
    let limit = match options.resource_version.as_str() {
        // Upstream answers these from its cache, which knows no pages.
        "0" => 0,
        _ => options.limit,
    };
    match &resource.stored_form {
        Some(form) if form.asks_webhook() && !selection.is_everything() => {
            select_converted(ctx, resource, selection, &snapshot, after, limit).await
        }
        _ => {
            let filter = |entry: &Entry| selection.matches(entry);
            let mut page = snapshot.list(after.as_deref(), limit, filter);
            page.entries = conversion::present(&ctx.api, resource, page.entries).await?;
            Ok(page)
        }
    }
}

/// What a list shows a page of, and the key after which the page begins.
async fn snapshot(
    ctx: &Ctx,
    selection: &Selection,
    options: &ListOptions,
) -> Result<(Snapshot, Option<String>)> {
    let storage = &ctx.api.storage;
    let cache = &storage.cache;
    if !options.continue_token.is_empty() {
        if !matches!(options.resource_version.as_str(), "" | "0") {
            return Err(Status::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        let token = ContinueToken::parse(&options.continue_token)?;
        let start = format!("{}{}", selection.prefix, token.start);
        let start = start.strip_suffix('\0').unwrap_or(&start).to_owned();
        if token.revision <= 0 {
            storage.fresh().await?;
            return Ok((cache.snapshot(&selection.prefix), Some(start)));
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
        return Ok((snapshot, Some(start)));
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
                return Ok((snapshot, None));
            }
        }
    }
    Ok((cache.snapshot(&selection.prefix), None))
}

/// A page of objects that must be converted before it is known which of them are selected.
async fn select_converted(
    ctx: &Ctx,
    resource: &Resource,
    selection: &Selection,
    snapshot: &Snapshot,
    mut after: Option<String>,
    limit: usize,
) -> Result<List> {
    // With one object more than the page has it is known whether another page follows.
    let enough = if limit == 0 { usize::MAX } else { limit + 1 };
    let mut found: Vec<Arc<Entry>> = Vec::new();
    loop {
        let stored = snapshot.list(after.as_deref(), conversion::REVIEW_OBJECTS, |_| true);
        after = stored.next().map(|key| key.as_ref().to_owned());
        let shown = conversion::present(&ctx.api, resource, stored.entries).await?;
        found.extend(shown.into_iter().filter(|entry| selection.matches(entry)));
        if after.is_none() || found.len() >= enough {
            break;
        }
    }
    let more = found.len() >= enough;
    if more {
        found.truncate(limit);
    }
    Ok(List {
        entries: found,
        revision: snapshot.revision,
        more,
        // Nobody is told, where there is a selector.
        remaining: 0,
    })
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
            .with_decode_padding_mode(DecodePaddingMode::RequireNone);
        let bytes = GeneralPurpose::new(&URL_SAFE, lenient)
            .decode(text)
            .map_err(|error| {
                let at = match error {
                    base64::DecodeError::InvalidByte(at, _)
                    | base64::DecodeError::InvalidLastSymbol(at, _) => at,
                    base64::DecodeError::InvalidPadding => text.find('=').unwrap_or(text.len()),
                    base64::DecodeError::InvalidLength(length) => length.saturating_sub(1),
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
        for (token, at) in [("x", 0), ("xxxxx", 4), ("ab=", 2), ("a b", 1)] {
            let refusal = ContinueToken::parse(token).expect_err(token);
            let expected = format!("illegal base64 data at input byte {at}");
            assert!(
                refusal.message.ends_with(&expected),
                "{token}: {}",
                refusal.message
            );
        }
    }
}
