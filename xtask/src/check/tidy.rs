//! Rules of the tree that no other tool holds.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{command, workspace};

/// What may stand at the top. A new entry is a decision about the architecture.
const TOP_LEVEL: [&str; 15] = [
    ".cargo",
    ".ci",
    ".clippy.toml",
    ".deny.toml",
    ".gitignore",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "control",
    "ebpf",
    "node-agent",
    "rust-toolchain.toml",
    "tests",
    "xtask",
];

/// Where `unsafe` may stand.
const UNSAFE: [&str; 2] = ["node-agent/datapath/", "ebpf/"];

/// Who may depend on whom: a dependency, and the folders whose crates may have it.
const EDGES: [(&str, &[&str]); 5] = [
    // Only the API server touches the store; the server wires them together.
    (
        "skep-store",
        &["control/store/", "control/apiserver/", "control/server/"],
    ),
    ("skep-apiserver", &["control/"]),
    ("aya", &["node-agent/datapath/"]),
    ("aya-ebpf", &["ebpf/"]),
    ("skep-datapath", &["node-agent/", "tests/"]),
];

/// Crates without I/O.
const PURE: [&str; 5] = [
    "control/api/",
    "control/schema/",
    "control/apply/",
    "control/cel/",
    "ebpf/common/",
];
/// Which test shows which behaviour of Kubernetes' conformance suite.
const BEHAVIOURS: &str = "tests/conformance.md";
const IO: [&str; 6] = ["tokio", "hyper", "axum", "kube", "nix", "bollard"];

pub(super) fn run() -> Result<()> {
    let listed = command::program("git")
        .args(["ls-files", "-z"])
        .directory(&workspace::root())
        .output()?;
    let files: Vec<&str> = listed.split('\0').filter(|file| !file.is_empty()).collect();
    let mut problems = Vec::new();
    for file in &files {
        let top = file.split('/').next().unwrap_or_default();
        if !TOP_LEVEL.contains(&top) {
            problems.push(format!(
                "{file}: {top} is not among the folders of the tree"
            ));
        }
        let Ok(text) = std::fs::read_to_string(workspace::root().join(file)) else {
            // Deleted but not yet committed, or not text.
            continue;
        };
        check_file(file, &text, &mut problems);
        if *file == BEHAVIOURS {
            let read = |test: &str| std::fs::read_to_string(workspace::root().join(test)).ok();
            check_behaviours(&text, read, &mut problems);
        }
        if file.ends_with("Cargo.toml") && *file != "Cargo.toml" {
            check_manifest(file, &text, &mut problems);
        }
        for name in named_files(file, &text) {
            if !exists(file, &name, &files) {
                problems.push(format!("{file}: names {name}, which does not exist"));
            }
        }
    }
    problems.sort();
    problems.dedup();
    if !problems.is_empty() {
        bail!("\n  {}", problems.join("\n  "));
    }
    Ok(())
}

fn check_file(file: &str, text: &str, problems: &mut Vec<String>) {
    if is_crate_root(file)
        && !UNSAFE.iter().any(|allowed| file.starts_with(allowed))
        && !text.contains("#![forbid(unsafe_code)]")
    {
        problems.push(format!(
            "{file}: a crate root without #![forbid(unsafe_code)]"
        ));
    }
    // Written so that this file does not find itself.
    let todo = concat!("TO", "DO");
    let placeholders = [concat!("todo", "!("), concat!("unimplemented", "!(")];
    let homes = [
        concat!("/ro", "ot/"),
        concat!("/ho", "me/"),
        concat!("/wo", "rk/wt"),
        concat!("/wo", "rk/main"),
    ];
    for (number, line) in (1..).zip(text.lines()) {
        let at = || format!("{file}:{number}");
        if line.contains(todo) && !line.contains(&format!("{todo}(issue ")) {
            problems.push(format!(
                "{}: a {todo} must name its issue, as {todo}(issue 12)",
                at()
            ));
        }
        if file.ends_with(".rs")
            && placeholders
                .iter()
                .any(|placeholder| line.contains(placeholder))
        {
            problems.push(format!("{}: unfinished code", at()));
        }
        if file != "Cargo.lock" && homes.iter().any(|home| line.contains(home)) {
            problems.push(format!("{}: a path of somebody's machine", at()));
        }
    }
}

fn is_crate_root(file: &str) -> bool {
    let in_bin = file
        .split_once("/src/bin/")
        .is_some_and(|(_, rest)| !rest.contains('/'));
    file.ends_with("src/lib.rs") || file.ends_with("/main.rs") || in_bin
}

fn check_manifest(file: &str, text: &str, problems: &mut Vec<String>) {
    if !text.contains("[lints]\nworkspace = true") {
        problems.push(format!(
            "{file}: does not inherit the lints of the workspace"
        ));
    }
    for field in ["version", "edition", "rust-version", "license", "publish"] {
        if !text.contains(&format!("\n{field}.workspace = true")) {
            problems.push(format!("{file}: {field} does not come from the workspace"));
        }
    }
    let mut section = "";
    for line in text.lines() {
        if line.starts_with('[') {
            section = line;
            continue;
        }
        if !section.ends_with("dependencies]") {
            continue;
        }
        let Some(name) = line
            .split(['.', ' ', '='])
            .next()
            .filter(|name| !name.is_empty() && !name.starts_with('#'))
        else {
            continue;
        };
        if !line.contains("workspace = true") {
            problems.push(format!(
                "{file}: {name} must come from [workspace.dependencies]"
            ));
        }
        for (dependency, allowed) in EDGES {
            if section == "[dependencies]"
                && name == dependency
                && !allowed.iter().any(|folder| file.starts_with(folder))
            {
                problems.push(format!("{file}: must not depend on {name}"));
            }
        }
        let pure = PURE.iter().any(|folder| file.starts_with(folder));
        if pure && section == "[dependencies]" && IO.contains(&name) {
            problems.push(format!("{file}: does no I/O, so it has no use for {name}"));
        }
    }
}

/// Headings name a file and a function in it, and the list below each what that function shows: nothing twice.
fn check_behaviours(text: &str, read: impl Fn(&str) -> Option<String>, problems: &mut Vec<String>) {
    let mut shown = std::collections::BTreeSet::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            let mut words = heading.split('`').skip(1).step_by(2);
            let file = words.next().unwrap_or_default();
            let function = words.next().unwrap_or_default();
            let test = read(file).unwrap_or_default();
            if function.is_empty() || !test.contains(&format!("fn {function}(")) {
                problems.push(format!(
                    "{BEHAVIOURS}: there is no `{function}` in `{file}`"
                ));
            }
        } else if let Some(behaviour) = line.strip_prefix("- ")
            && !shown.insert(behaviour)
        {
            problems.push(format!("{BEHAVIOURS}: {behaviour:?} stands there twice"));
        }
    }
}

/// Files that a text names in backticks or links: paths with a folder in the README, Rust files in crate documentation.
fn named_files(file: &str, text: &str) -> Vec<String> {
    let is_readme = file == "README.md";
    if !is_readme && !file.ends_with(".rs") {
        return Vec::new();
    }
    text.lines()
        .filter(|line| is_readme || line.starts_with("//!"))
        .flat_map(|line| line.split(['`', '(', ')', ' ', ',', '<', '>', '"']))
        .map(|word| word.trim_end_matches(['.', ':', ';']))
        .filter(|word| !word.contains(['*', '$', '{', '…']) && !word.starts_with(['/', '~', '.']))
        .filter(|word| {
            let top = word.split('/').next().unwrap_or_default();
            if is_readme {
                word.contains('/') && TOP_LEVEL.contains(&top)
            } else {
                word.ends_with(".rs")
                    && word.len() > 3
                    && !word.contains("::")
                    && !word.contains("//")
            }
        })
        .map(str::to_owned)
        .collect()
}

/// Whether a name is a file or folder, seen from the file that names it, from its crate, or from the top.
fn exists(file: &str, name: &str, files: &[&str]) -> bool {
    let name = name.trim_end_matches('/');
    let found = |path: &Path| {
        let path = path.to_string_lossy();
        files.iter().any(|each| {
            *each == path
                || each
                    .strip_prefix(path.as_ref())
                    .is_some_and(|rest| rest.starts_with('/'))
        })
    };
    let mut folders = Path::new(file).ancestors().skip(1);
    folders.any(|folder| {
        found(&normal(&folder.join(name))) || found(&normal(&folder.join("src").join(name)))
    })
}

/// Without `..`.
fn normal(path: &Path) -> std::path::PathBuf {
    let mut normal = std::path::PathBuf::new();
    for part in path.components() {
        if part == std::path::Component::ParentDir {
            normal.pop();
        } else {
            normal.push(part);
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(check: impl FnOnce(&mut Vec<String>)) -> Vec<String> {
        let mut found = Vec::new();
        check(&mut found);
        found
    }

    #[test]
    fn unsafe_code_must_be_forbidden_in_crate_roots() {
        let without =
            |file: &str| problems(|found| check_file(file, "fn main() {}\n", found)).len();
        assert_eq!(without("control/api/src/lib.rs"), 1);
        assert_eq!(without("tests/e2e/main.rs"), 1);
        assert_eq!(without("tests/src/bin/one.rs"), 1);
        assert_eq!(without("tests/src/bin/two/part.rs"), 0);
        assert_eq!(without("node-agent/datapath/src/lib.rs"), 0);
        assert_eq!(without("control/api/src/field.rs"), 0);
    }

    #[test]
    fn unfinished_code_is_found() {
        let lines = [
            concat!("// TO", "DO: later"),
            concat!("todo", "!()"),
            concat!("let a = \"/ro", "ot/x\";"),
        ];
        for line in lines {
            assert_eq!(
                problems(|found| check_file("a/b.rs", line, found)).len(),
                1,
                "{line}"
            );
        }
        assert!(
            problems(|found| check_file("a/b.rs", concat!("// TO", "DO(issue 3): later"), found))
                .is_empty()
        );
    }

    #[test]
    fn manifests() {
        let good = "[package]\nversion.workspace = true\nedition.workspace = true\nrust-version.workspace = true\n\
                    license.workspace = true\npublish.workspace = true\n[lints]\nworkspace = true\n[dependencies]\n";
        let with = |file: &str, line: &str| {
            problems(|found| check_manifest(file, &format!("{good}{line}\n"), found)).len()
        };
        assert_eq!(with("node-agent/Cargo.toml", "kube.workspace = true"), 0);
        assert_eq!(
            with("node-agent/Cargo.toml", "skep-store.workspace = true"),
            1
        );
        assert_eq!(with("node-agent/Cargo.toml", "kube = \"5\""), 1);
        assert_eq!(with("control/api/Cargo.toml", "tokio.workspace = true"), 1);
        assert_eq!(
            problems(|found| check_manifest("x/Cargo.toml", "", found)).len(),
            6
        );
    }

    #[test]
    fn behaviours_are_shown_by_tests_that_exist() {
        let read = |file: &str| (file == "a.rs").then(|| "async fn one() {}".to_owned());
        let found = |text: &str| problems(|found| check_behaviours(text, read, found)).len();
        assert_eq!(found("# Title\n\n## `a.rs` `one`\n\n- x\n- y\n"), 0);
        assert_eq!(found("## `a.rs` `two`\n"), 1);
        assert_eq!(found("## `b.rs` `one`\n"), 1);
        assert_eq!(found("## `a.rs` `one`\n- x\n- x\n"), 1);
    }

    #[test]
    fn named_files_are_looked_up_from_where_they_are_named() {
        let files = [
            "README.md",
            "control/api/src/lib.rs",
            "control/api/src/pod/mod.rs",
            "tests/e2e/main.rs",
        ];
        assert!(exists("control/api/src/lib.rs", "pod/mod.rs", &files));
        assert!(exists("tests/src/lib.rs", "../e2e/main.rs", &files));
        assert!(exists("README.md", "control/api", &files));
        assert!(!exists("README.md", "control/none", &files));
        assert_eq!(
            named_files("README.md", "See `control/api` and `kubectl get`."),
            ["control/api"]
        );
        assert_eq!(
            named_files("x/src/lib.rs", "//! Read first: `up.rs`.\n// not `down.rs`"),
            ["up.rs"]
        );
    }
}
