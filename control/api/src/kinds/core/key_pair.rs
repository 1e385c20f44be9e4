//! What is wrong with a certificate and its key, in the words of Go's `tls.X509KeyPair`.

use base64::{Engine, prelude::BASE64_STANDARD};

const KEY: &str = "PRIVATE KEY";

pub fn problem(certificate: &[u8], key: &[u8]) -> Option<String> {
    let blocks = pem_blocks(certificate);
    let types: Vec<&str> = blocks.iter().map(|(type_, _)| type_.as_str()).collect();
    let Some((_, der)) = blocks.iter().find(|(type_, _)| type_ == "CERTIFICATE") else {
        return Some(match types.as_slice() {
            [] => "tls: failed to find any PEM data in certificate input".to_owned(),
            [one] if one.ends_with(KEY) => {
                "tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM \
                 inputs may have been switched"
                    .to_owned()
            }
            _ => format!(
                "tls: failed to find \"CERTIFICATE\" PEM block in certificate input after skipping PEM blocks of the \
                 following types: [{}]",
                types.join(" ")
            ),
        });
    };
    let blocks = pem_blocks(key);
    let types: Vec<&str> = blocks.iter().map(|(type_, _)| type_.as_str()).collect();
    let is_key = |type_: &&str| *type_ == KEY || type_.ends_with(" PRIVATE KEY");
    if !types.iter().any(is_key) {
        return Some(match types.as_slice() {
            [] => "tls: failed to find any PEM data in key input".to_owned(),
            ["CERTIFICATE"] => {
                "tls: found a certificate rather than a key in the PEM for the private key"
                    .to_owned()
            }
            _ => format!(
                "tls: failed to find PEM block with type ending in \"PRIVATE KEY\" in key input after skipping PEM \
                 blocks of the following types: [{}]",
                types.join(" ")
            ),
        });
    }
    if x509_parser::parse_x509_certificate(der).is_err() {
        return Some("x509: malformed certificate".to_owned());
    }
    None
}

/// Type and content of each block that can be read.
fn pem_blocks(text: &[u8]) -> Vec<(String, Vec<u8>)> {
    let text = String::from_utf8_lossy(text);
    let mut rest = text.as_ref();
    let mut blocks = Vec::new();
    while let Some((_, after)) = rest.split_once("-----BEGIN ") {
        rest = after;
        let Some((type_, body)) = after.split_once("-----") else {
            break;
        };
        let Some((body, after)) = body.split_once(&format!("-----END {type_}-----")) else {
            continue;
        };
        let packed: String = body.split_whitespace().collect();
        if let Ok(content) = BASE64_STANDARD.decode(packed) {
            blocks.push((type_.to_owned(), content));
            rest = after;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
    const KEY: &str = "-----BEGIN EC PRIVATE KEY-----\nMAA=\n-----END EC PRIVATE KEY-----\n";

    #[test]
    fn says_what_go_says() {
        for (certificate, key, expected) in [
            (
                "hi",
                "hi",
                "tls: failed to find any PEM data in certificate input",
            ),
            (KEY, CERTIFICATE, "PEM inputs may have been switched"),
            (
                CERTIFICATE,
                "hi",
                "tls: failed to find any PEM data in key input",
            ),
            (
                CERTIFICATE,
                CERTIFICATE,
                "tls: found a certificate rather than a key",
            ),
            (CERTIFICATE, KEY, "x509: malformed certificate"),
        ] {
            let found = problem(certificate.as_bytes(), key.as_bytes());
            assert!(
                found.is_some_and(|text| text.contains(expected)),
                "{expected}"
            );
        }
    }
}
