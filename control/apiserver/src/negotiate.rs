//! Content negotiation: what the client accepts, what it sent (`Accept`, `Content-Type`).

use http::{HeaderMap, header};

use crate::status::{Result, Status};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    #[default]
    Json,
    Yaml,
    Protobuf,
}

impl Encoding {
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
        }
    }

    /// `None`: no media type that we can read or write.
    pub fn of(media: &str) -> Option<Self> {
        match media {
            "application/json" | "" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// What to turn objects into before they are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transform {
    #[default]
    None,
    Table,
    PartialObjectMetadata,
    PartialObjectMetadataList,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub encoding: Encoding,
    pub transform: Transform,
    /// The transform's version is `meta.k8s.io/v1beta1` instead of `v1`.
    pub beta: bool,
    pub pretty: bool,
}

impl Output {
    pub fn meta_version(&self) -> &'static str {
        if self.beta {
            "meta.k8s.io/v1beta1"
        } else {
            "meta.k8s.io/v1"
        }
    }
}

/// One clause of an `Accept` header.
pub struct Clause<'a> {
    pub media: &'a str,
    pub parameters: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut pieces = text.split(';').map(str::trim);
        let media = pieces.next().unwrap_or_default();
        let mut quality = 1.0;
        let mut parameters = Vec::new();
        for piece in pieces {
            let (key, value) = piece.split_once('=').unwrap_or((piece, ""));
            let value = value.trim_matches('"');
            if key == "q" {
                quality = value.parse().unwrap_or(1.0);
            } else {
                parameters.push((key, value));
            }
        }
        Self {
            media,
            parameters,
            quality,
        }
    }

    pub fn parameter(&self, key: &str) -> &'a str {
        let pair = self.parameters.iter().find(|(k, _)| *k == key);
        pair.map_or("", |(_, v)| v)
    }

    fn specificity(&self) -> usize {
        let media = match self.media.split_once('/') {
            Some(("*", _)) => 0,
            Some((_, "*")) => 1,
            _ => 2,
        };
        media * 100 + self.parameters.len()
    }
}

/// Clauses of `Accept`, best first; a missing header accepts anything.
pub fn clauses(headers: &HeaderMap) -> Vec<Clause<'_>> {
    let values = headers.get_all(header::ACCEPT).into_iter();
    let mut clauses: Vec<Clause<'_>> = values
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .filter(|c| !c.trim().is_empty())
        .map(|c| Clause::parse(c.trim()))
        .collect();
    clauses.sort_by(|a, b| {
        let by_quality = b.quality.total_cmp(&a.quality);
        by_quality.then_with(|| b.specificity().cmp(&a.specificity()))
    });
    if clauses.is_empty() {
        clauses.push(Clause::parse("*/*"));
    }
    clauses
}

/// Which transforms an endpoint offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    Plain,
    /// Table and PartialObjectMetadata too.
    Transforms,
    /// The same for kinds that have no protobuf form.
    TransformsWithoutProtobuf,
}

const ACCEPTED: &str = "only the following media types are accepted: \
                        application/json, application/yaml, application/vnd.kubernetes.protobuf";

/// Picks what to answer with.
///
/// # Errors
/// 406 when nothing the client accepts can be produced.
pub fn output(headers: &HeaderMap, offer: Offer, pretty: Option<&str>) -> Result<Output> {
    let clauses = clauses(headers);
    let mut known_media = false;
    for clause in &clauses {
        let encoding = match clause.media {
            "*/*" | "application/*" => Some(Encoding::Json),
            "" => None,
            media => Encoding::of(media),
        };
        let Some(encoding) = encoding else {
            continue;
        };
        known_media = true;
        if encoding == Encoding::Protobuf && offer == Offer::TransformsWithoutProtobuf {
            continue;
        }
        let (transform, beta) = match transform_of(clause, offer) {
            Some(found) => found,
            None => continue,
        };
        return Ok(Output {
            encoding,
            transform,
            beta,
            pretty: is_pretty(headers, pretty, clause),
        });
    }
    // Upstream's router refuses unknown media types before negotiation does.
    Err(if known_media {
        Status::not_acceptable(ACCEPTED)
    } else {
        Status::not_acceptable_scope()
    })
}

fn is_pretty(headers: &HeaderMap, pretty: Option<&str>, clause: &Clause<'_>) -> bool {
    if let Some(pretty) = pretty {
        return pretty != "0" && !pretty.eq_ignore_ascii_case("false");
    }
    if clause.parameter("pretty") == "1" {
        return true;
    }
    let agent = headers.get(header::USER_AGENT);
    let agent = agent.and_then(|a| a.to_str().ok()).unwrap_or_default();
    ["curl", "Wget", "Mozilla/5.0"]
        .iter()
        .any(|browser| agent.starts_with(browser))
}

/// `None`: the clause asks for something that does not exist here.
fn transform_of(clause: &Clause<'_>, offer: Offer) -> Option<(Transform, bool)> {
    let wanted = clause.parameter("as");
    if wanted.is_empty() {
        return Some((Transform::None, false));
    }
    if offer == Offer::Plain || clause.parameter("g") != "meta.k8s.io" {
        return None;
    }
    let beta = match clause.parameter("v") {
        "v1" => false,
        "v1beta1" => true,
        _ => return None,
    };
    let transform = match wanted {
        "Table" => Transform::Table,
        "PartialObjectMetadata" => Transform::PartialObjectMetadata,
        "PartialObjectMetadataList" => Transform::PartialObjectMetadataList,
        _ => return None,
    };
    Some((transform, beta))
}

/// What the body is written in.
///
/// # Errors
/// 415 for a media type that no decoder reads.
pub fn input(headers: &HeaderMap) -> Result<Encoding> {
    Encoding::of(media_type(headers)).ok_or_else(|| {
        Status::unsupported_media_type(
            "the body of the request was in an unknown format - accepted media types include: \
             application/json, application/yaml, application/vnd.kubernetes.protobuf",
        )
    })
}

/// `Content-Type` without its parameters; empty without the header.
pub fn media_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE);
    let value = value.and_then(|v| v.to_str().ok()).unwrap_or_default();
    value.split(';').next().unwrap_or_default().trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(accept: &str) -> std::result::Result<(Encoding, Transform, bool), String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().expect("header"));
        output(&headers, Offer::Transforms, None)
            .map(|o| (o.encoding, o.transform, o.beta))
            .map_err(|s| s.message)
    }

    #[test]
    fn kubectl_gets_a_table() {
        let accept = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(check(accept), Ok((Encoding::Json, Transform::Table, false)));
        assert_eq!(
            check("application/vnd.kubernetes.protobuf,application/json"),
            Ok((Encoding::Protobuf, Transform::None, false))
        );
        assert_eq!(
            check("text/html;q=0.9, application/json;q=0.8"),
            Ok((Encoding::Json, Transform::None, false))
        );
    }

    #[test]
    fn refusals_differ_by_who_refuses() {
        assert!(check("text/html").unwrap_err().starts_with("406: Not"));
        let nope = check("application/json;as=Nope;g=meta.k8s.io;v=v1");
        assert!(nope.unwrap_err().starts_with("only the following"));
    }
}
