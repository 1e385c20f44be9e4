//! Files that change all at once.
//!
//! ```text
//! volume/name        -> ..data/name
//! volume/..data      -> ..2026_11_23_10_00_00.0123456789
//! volume/..2026_…/name
//! ```
//! A new version is written beside the old one, then the `..data` link is replaced by a rename. A
//! reader sees either all of the old files or all of the new ones. The layout is upstream's, since
//! programs watch for it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use jiff::Timestamp;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Content {
    pub bytes: Vec<u8>,
    pub mode: u32,
    /// Who owns it; `None`: root.
    pub user: Option<u32>,
}

/// By path relative to the volume; never absolute, never with `..`.
pub(super) type Files = BTreeMap<String, Content>;

const DATA: &str = "..data";

/// # Guarantees
/// Nothing changes when the files are already there as wanted.
pub(super) fn write(volume: &Path, files: &Files, group: Option<u32>) -> io::Result<()> {
    for path in files.keys() {
        let bad = path.is_empty() || path.starts_with('/') || path.split('/').any(|p| p == "..");
        if bad {
            return Err(io::Error::other(format!(
                "path \"{path}\" must stay inside the volume"
            )));
        }
    }
    fs::create_dir_all(volume)?;
    fs::set_permissions(volume, fs::Permissions::from_mode(0o777))?;
    let data = volume.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.is_some() && same(&data, files)? {
        return Ok(());
    }
    let name = format!(
        "..{}.{:010}",
        Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"),
        rand::random::<u32>()
    );
    let fresh = volume.join(&name);
    fs::create_dir(&fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
    for (path, content) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&target, &content.bytes)?;
        let mut mode = content.mode;
        if content.user.is_some() || group.is_some() {
            nix::unistd::chown(&target, content.user.map(Into::into), group.map(Into::into))?;
        }
        if group.is_some() {
            mode |= 0o440;
        }
        fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
    }
    let temporary = volume.join("..data_tmp");
    match fs::remove_file(&temporary) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    symlink(&name, &temporary)?;
    fs::rename(&temporary, &data)?;

    let visible: BTreeSet<&str> = files
        .keys()
        .map(|path| path.split('/').next().unwrap_or_default())
        .collect();
    for name in &visible {
        match symlink(Path::new(DATA).join(name), volume.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    for entry in fs::read_dir(volume)? {
        let entry = entry?;
        let file_name = entry.file_name();
        let known = file_name.to_str().is_some_and(|n| {
            n == DATA || n == name || (!n.starts_with("..") && visible.contains(n))
        });
        if known {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn same(data: &Path, files: &Files) -> io::Result<bool> {
    let mut found = BTreeSet::new();
    list(data, "", &mut found)?;
    if found.len() != files.len() {
        return Ok(false);
    }
    for (path, content) in files {
        if !found.contains(path) || fs::read(data.join(path))? != content.bytes {
            return Ok(false);
        }
    }
    Ok(true)
}

fn list(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list(&entry.path(), &format!("{name}/"), found)?;
        } else {
            found.insert(name);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        let content = |text: &str| Content {
            bytes: text.into(),
            mode: 0o644,
            user: None,
        };
        list.iter()
            .map(|(k, v)| (k.to_string(), content(v)))
            .collect()
    }

    #[test]
    fn a_new_version_replaces_the_old_one_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        write(&volume, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        let first = fs::read_link(volume.join(DATA)).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "1");
        assert_eq!(fs::read_to_string(volume.join("d/b")).unwrap(), "2");

        write(&volume, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap();
        assert_eq!(
            fs::read_link(volume.join(DATA)).unwrap(),
            first,
            "nothing changed"
        );

        write(&volume, &files(&[("a", "3")]), None).unwrap();
        assert_eq!(fs::read_to_string(volume.join("a")).unwrap(), "3");
        assert!(!volume.join("d").exists());
        assert!(!volume.join(first).exists(), "the old version is gone");
    }

    #[test]
    fn a_path_that_leaves_the_volume_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["../a", "/a", "b/../../a", ""] {
            assert!(
                write(&dir.path().join("v"), &files(&[(path, "x")]), None).is_err(),
                "{path}"
            );
        }
    }
}
