//! Programs that extend the command line: `skep NAME` runs `skep-NAME`, or else kubectl's plugin of that name.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use clap::Subcommand;

/// In the order in which they are looked for.
const PREFIXES: [&str; 2] = ["skep", "kubectl"];

/// Programs on $PATH that extend this command line
#[derive(Subcommand, Clone, Debug)]
pub enum Plugin {
    /// List the programs named skep-NAME and kubectl-NAME on $PATH
    List {
        /// Only their names
        #[arg(long)]
        name_only: bool,
    },
}

impl Plugin {
    pub fn run(&self) -> Result<()> {
        let Self::List { name_only } = self;
        let mut found = 0;
        for folder in path() {
            for file in programs(&folder) {
                if found == 0 {
                    println!("The following compatible plugins are available:\n");
                }
                found += 1;
                let shown = if *name_only {
                    file.file_name().map_or(file.as_path(), Path::new)
                } else {
                    &file
                };
                println!("{}", shown.display());
            }
        }
        if found == 0 {
            bail!("unable to find any skep or kubectl plugins in your PATH");
        }
        Ok(())
    }
}

/// Becomes the plugin with the longest name that the words spell: `skep a b c` tries `skep-a-b-c`, `skep-a-b`, `skep-a`,
/// each with kubectl's prefix after ours. Returns only when there is none, or it cannot be run.
pub fn become_plugin(words: &[OsString]) -> Result<()> {
    // A dash in a word is an underscore in the file's name.
    let names: Vec<String> = words
        .iter()
        .map_while(|word| word.to_str().filter(|word| !word.starts_with('-')))
        .map(|word| word.replace('-', "_"))
        .collect();
    let folders: Vec<PathBuf> = path().collect();
    for length in (1..=names.len()).rev() {
        let name = names[..length].join("-");
        let file = PREFIXES.iter().find_map(|prefix| {
            let file = format!("{prefix}-{name}");
            folders
                .iter()
                .map(|folder| folder.join(&file))
                .find(|file| runs(file))
        });
        if let Some(file) = file {
            let error = Command::new(&file).args(&words[length..]).exec();
            return Err(error).with_context(|| format!("running {}", file.display()));
        }
    }
    let first = words.first().map(|word| word.to_string_lossy());
    bail!(
        "unknown command \"{}\" for \"skep\"\nSee 'skep --help' for the commands there are.",
        first.unwrap_or_default()
    )
}

fn path() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).collect::<Vec<_>>().into_iter()
}

/// The plugins in a folder, by name. A folder that cannot be read has none.
fn programs(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .filter(|entry| named_like_a_plugin(&entry.file_name()))
        .map(|entry| entry.path())
        .filter(|file| runs(file))
        .collect();
    files.sort();
    files
}

fn named_like_a_plugin(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    PREFIXES.iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| rest.starts_with('-'))
    })
}

fn runs(file: &Path) -> bool {
    file.metadata()
        .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}
