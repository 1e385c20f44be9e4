//! Every third-party crate must be usable under a licence of the list in .deny.toml.

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::{command, workspace};

pub(super) fn run() -> Result<()> {
    if command::find("cargo-deny").is_some() {
        // Advisories need a download; these do not.
        return command::line("cargo deny --all-features check bans licenses sources")
            .directory(&workspace::root())
            .run();
    }
    let configuration = std::fs::read_to_string(workspace::root().join(".deny.toml"))?;
    let allowed =
        allow_list(&configuration).context(".deny.toml has no list of allowed licences")?;
    let metadata = command::program(workspace::cargo())
        .args(["metadata", "--format-version", "1", "--locked"])
        .directory(&workspace::root())
        .output()?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let packages = metadata["packages"]
        .as_array()
        .context("cargo metadata lists no packages")?;
    let problems: Vec<String> = packages
        .iter()
        .filter(|package| !package["source"].is_null())
        .filter_map(|package| {
            let licence = package["license"].as_str().unwrap_or("");
            (!is_allowed(licence, &allowed))
                .then(|| format!("{} is under {licence:?}", package["name"]))
        })
        .collect();
    if !problems.is_empty() {
        bail!("not in the list of .deny.toml: {}", problems.join(", "));
    }
    Ok(())
}

/// The strings of `allow = […]`.
fn allow_list(configuration: &str) -> Option<Vec<&str>> {
    let list = configuration.split_once("allow = [")?.1.split_once(']')?.0;
    Some(list.split('"').skip(1).step_by(2).collect())
}

/// Whether a licence expression (SPDX 2.3, Annex D) can be met with what is allowed. `a/b` is an old way to say `a OR b`.
fn is_allowed(expression: &str, allowed: &[&str]) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut at = 0;
    let met = either(&words, &mut at, allowed);
    met && at == words.len()
}

fn either(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut met = both(words, at, allowed);
    while words.get(*at) == Some(&"OR") {
        *at += 1;
        // Not short-circuited: the words must be consumed.
        let right = both(words, at, allowed);
        met |= right;
    }
    met
}

fn both(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let mut met = one(words, at, allowed);
    while words.get(*at) == Some(&"AND") {
        *at += 1;
        let right = one(words, at, allowed);
        met &= right;
    }
    met
}

fn one(words: &[&str], at: &mut usize, allowed: &[&str]) -> bool {
    let word = words.get(*at);
    // Also past the end, where an expression that stops short is then not taken for whole.
    *at += 1;
    let Some(word) = word else { return false };
    if *word == "(" {
        let met = either(words, at, allowed);
        let closed = words.get(*at) == Some(&")");
        *at += 1;
        return met && closed;
    }
    if words.get(*at) == Some(&"WITH") {
        let exception = words.get(*at + 1).copied().unwrap_or_default();
        *at += 2;
        // An exception only ever grants more.
        return allowed.contains(&format!("{word} WITH {exception}").as_str())
            || allowed.contains(word);
    }
    allowed.contains(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions() {
        let allowed = ["MIT", "Apache-2.0", "ISC"];
        for good in [
            "MIT",
            "MIT OR GPL-3.0",
            "GPL-3.0/MIT",
            "(MIT OR GPL-3.0) AND ISC",
            "Apache-2.0 WITH LLVM-exception OR X",
        ] {
            assert!(is_allowed(good, &allowed), "{good}");
        }
        for bad in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT",
            "MIT MIT",
            "MIT OR",
            "(GPL-3.0 OR X) AND MIT",
        ] {
            assert!(!is_allowed(bad, &allowed), "{bad}");
        }
    }

    #[test]
    fn the_list_of_the_tree_is_found() {
        assert_eq!(
            allow_list("[licenses]\nallow = [\n \"MIT\",\n \"ISC\",\n]\n"),
            Some(vec!["MIT", "ISC"])
        );
        assert_eq!(allow_list("nothing"), None);
    }
}
